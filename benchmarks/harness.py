"""One benchmark run: checks contenders against float64, times them in interleaved rounds, and records the figures.

A contender whose error exceeds its limit gets no time. One that cannot run, fails or does not fit the time budget gets
a record with the reason. The result file is written after each record.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reports.machine import provenance
from benchmarks.reports.records import Record, Run
from hrnet_fast.inference.profile import ceilings
from hrnet_fast.measure import Call, InterleavedTimer, error_limit, relative_error

WARM_UPS = 3  # rounds of operators that are not recorded
SECONDS_OF_OPERATOR = 8.0  # after which no further round begins
SPENT = "the time budget was spent before its turn"


@dataclass
class Entry:
    """A contender of one case.

    Attributes:
        prepare: returns the call that is timed. The set-up time is that of `prepare` and of the first call.
        unavailable: the reason why it cannot run, or None.
        case, contender: names in its record, where one run times cases of several networks; None means the case's name
            and the entry's key.
        params, flops, bytes, paper: of its record, in addition to the case's.
        exact: returns the float64 result, and keeps it for the next call; without it the result is not checked.
    """

    prepare: Callable[[], Call]
    unavailable: str | None = None
    case: str | None = None
    contender: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    flops: float | None = None
    bytes: float | None = None
    paper: dict[str, Any] | None = None
    exact: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Case:
    """The computation that contenders share; see Record."""

    suite: str
    name: str
    quantity: str
    dtype: torch.dtype
    params: dict[str, Any] = field(default_factory=dict)


class Session:
    """The run of one ``pytest benchmarks/``.

    Attributes:
        asked: whether contenders run that compile for minutes.
        calls: of the last case, the measured calls by name.
    """

    def __init__(self, options: Mapping[str, Any], measuring: bool) -> None:
        self.measuring = measuring
        self.device = torch.device(options["device"])
        self.scale = options["scale"]
        self.dtypes = options["dtypes"]
        self.contenders = options["contenders"]
        self.asked: bool = self.contenders is not None or bool(options.get("compile"))
        self.deadline: float = time.monotonic() + 60 * options["budget"]
        self.path: Path | None = options["results"]
        self.calls: dict[str, Call] = {}
        self.run = Run(**provenance(self.device), options={k: str(v) for k, v in options.items() if k != "results"})
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # for all contenders: some set it themselves
        if measuring:
            self._measure_ceilings()

    def wants(self, contender: str) -> bool:
        """Whether ``--contenders`` selects a contender; without the option, all are selected."""
        return self.contenders is None or any(part.lower() in contender.lower() for part in self.contenders)

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

    def add(self, *records: Record) -> None:
        """Append records and write the result file."""
        self.run.records += records
        if self.path is not None:
            self.run.save(self.path)

    def time_networks(
        self,
        benchmark: Any,
        case: Case,
        entries: Mapping[str, Entry],
        *,
        seconds: float = 20.0,
        rounds: tuple[int, int] = (3, 15),
        baseline: str | None = None,
    ) -> dict[str, float]:
        """Check and time `entries` in interleaved rounds and record all; return the medians of the measured ones.

        Args:
            benchmark: pytest-benchmark's fixture; it runs the rounds.
            seconds: the time for all rounds, of which there are at least `rounds[0]` and at most `rounds[1]`.
            baseline: the contender whose error determines the limit of all; None is the first of equal `exact`.
        """
        wanted = {name: entry for name, entry in entries.items() if self.wants(entry.contender or name)}
        fields = {name: self._record_fields(case, entry, name) for name, entry in wanted.items()}
        ready: dict[str, Call] = {}
        errors: dict[str, float] = {}
        self.calls = ready
        for name, entry in wanted.items():
            if entry.unavailable is not None:
                self._add_missing(fields[name], "unavailable", entry.unavailable)
            elif self.measuring and self.left() < 0:
                self._add_missing(fields[name], "out of time", SPENT)
            else:
                result = self._prepare(name, entry, fields[name], ready)
                if entry.exact is not None and name in ready:
                    errors[name] = relative_error(result, entry.exact())
        for name, error in errors.items():
            alike = (other for other in errors if wanted[other].exact is wanted[name].exact)
            reference = baseline if baseline is not None and baseline in errors else next(alike)
            limit = error_limit(errors[reference], case.dtype)
            fields[name] |= {"error": error, "limit": limit}
            if not error <= limit:
                self._add_missing(fields[name], "wrong", f"error {error:.1e}, allowed is {limit:.1e}")
                del ready[name]
        if not ready:
            return {}
        timer = InterleavedTimer(ready, self.device)
        timer.round()  # its time determines the number of rounds; all calls were warmed up by their check
        whole = max(sum(times[0] for times in timer.times.values()), 1e-6)
        fewest, most = rounds
        budget = min(seconds, max(0.0, self.left()))
        count = min(most, max(fewest, int(budget / whole))) if self.measuring else 2
        benchmark.pedantic(timer.round, rounds=count - 1, warmup_rounds=0)
        medians = self._add_times(timer.times, fields)
        benchmark.extra_info.update({f"{name}_ms": round(s * 1e3, 3) for name, s in medians.items()})
        self._print(case, ", ".join(f"{name} {s * 1e3:.2f}" for name, s in medians.items()) + " ms")
        return medians

    def time_operator(
        self,
        benchmark: Any,
        case: Case,
        calls: Mapping[str, Call],
        rounds: int = 15,
        *,
        moving: Sequence[Tensor] = (),
        cost: tuple[float, float] | None = None,
    ) -> dict[str, float]:
        """Time implementations of an operator in interleaved rounds and record all; return the medians.

        The caller has checked the results. pytest-benchmark's table shows the second implementation, with its speed-up
        over the first.

        Args:
            moving: tensors that every implementation has to read. They, the first call's result and its FLOPs determine
                the device's limit.
            cost: FLOPs and bytes, where they cannot be counted so.
        """
        if cost is None and moving:
            with FlopCounterMode(display=False) as counter:
                made = next(iter(calls.values()))()
            tensors = [*moving, *(t for t in tree_leaves(made) if isinstance(t, Tensor))]
            cost = float(counter.get_total_flops()), float(sum(t.numel() * t.element_size() for t in tensors))
        flops, moved = cost or (None, None)
        fields = {
            name: self._record_fields(case, Entry(partial(calls.__getitem__, name), flops=flops, bytes=moved), name)
            for name in calls
        }
        if self.measuring and self.left() < 0:
            for about in fields.values():
                self._add_missing(about, "out of time", SPENT)
            pytest.skip("the time budget is spent")
        timer = InterleavedTimer(calls, self.device)
        warm, start = 0, time.perf_counter()
        for done in range(rounds + WARM_UPS if self.measuring else 1):
            spent = time.perf_counter() - start
            if spent > SECONDS_OF_OPERATOR and done - warm >= 3:
                break
            timer.round()
            if self.measuring and done < WARM_UPS and spent <= 1.0:  # what takes a second is warm after one round
                warm = done + 1
        medians = self._add_times({name: times[warm:] for name, times in timer.times.items()}, fields)
        first, second = list(medians)[:2]
        benchmark.extra_info.update({f"{name}_ms": round(value * 1e3, 4) for name, value in medians.items()})
        benchmark.extra_info["speed_up"] = round(medians[first] / medians[second], 3)
        benchmark.pedantic(calls[second], rounds=7 if self.measuring and medians[second] < 0.1 else 1, warmup_rounds=0)
        self._print(case, str(benchmark.extra_info))
        return medians

    def add_bytes(self, case: Case, contender: str, value: float, note: str = "", **more: Any) -> None:
        """Record an amount of memory; `more` are attributes of an `Entry`."""
        if self.wants(contender):
            fields = self._record_fields(case, Entry(lambda: lambda: None, **more), contender)
            self.add(Record(**fields, note=note, unit="byte", value=value, low=value, high=value, rounds=1))

    def limit(self, entry: Entry, dtype: str) -> float | None:
        """Return the least seconds that the measured copy and matrix product of this device allow."""
        top = self.run.ceilings
        if f"matmul {dtype}" not in top or entry.flops is None or entry.bytes is None:
            return None
        return max(entry.flops / top[f"matmul {dtype}"], entry.bytes / top["copy"])

    def _record_fields(self, case: Case, entry: Entry, name: str) -> dict[str, Any]:
        dtype = str(case.dtype).removeprefix("torch.")
        fields: dict[str, Any] = {
            "suite": case.suite,
            "case": entry.case or case.name,
            "contender": entry.contender or name,
            "quantity": case.quantity,
            "dtype": dtype,
            "params": {**case.params, **entry.params},
            "paper": entry.paper,
        }
        if entry.flops is not None and entry.bytes is not None:
            fields |= {"flops": entry.flops, "bytes": entry.bytes, "limit_s": self.limit(entry, dtype)}
        return fields

    def _prepare(self, name: str, entry: Entry, fields: dict[str, Any], ready: dict[str, Call]) -> list[Tensor]:
        start = time.perf_counter()
        try:
            call = entry.prepare()
            result = call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except Exception as error:  # recorded, whatever a contender raises
            if not self.measuring:
                raise
            self._add_missing(fields, "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            return []
        fields["setup_s"] = time.perf_counter() - start
        ready[name] = call
        return [t.cpu() for t in tree_leaves(result) if isinstance(t, Tensor)]

    def _add_times(self, times: Mapping[str, list[float]], fields: Mapping[str, dict[str, Any]]) -> dict[str, float]:
        medians: dict[str, float] = {}
        for name, values in times.items():
            low, medians[name], high = quartiles(values)
            self.add(Record(**fields[name], value=medians[name], low=low, high=high, rounds=len(values)))
        return medians

    def _add_missing(self, fields: dict[str, Any], status: str, note: str) -> None:
        self.add(Record(**fields, status=status, note=note))
        if self.measuring and status != "unavailable":
            print(
                f"\n{fields['suite']}: {fields['case']}, {fields['quantity']}: {fields['contender']} {status}: {note}"
            )

    def _print(self, case: Case, text: str) -> None:
        if self.measuring:
            print(f"\n{case.suite}: {case.name}, {case.quantity}, {str(case.dtype)[6:]}: {text}")

    def _measure_ceilings(self) -> None:
        kinds = (torch.float32, torch.bfloat16, *((torch.float16,) if self.device.type == "cuda" else ()))
        for dtype in kinds:
            top = ceilings(self.device, dtype)
            self.run.ceilings[f"matmul {str(dtype).removeprefix('torch.')}"] = top.flops_per_second
            self.run.ceilings["copy"] = max(self.run.ceilings.get("copy", 0.0), top.bytes_per_second)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, statistics.median(values), high
