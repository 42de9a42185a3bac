"""One benchmark run: contenders are prepared, checked against the exact answer, timed in turns, and recorded.

Nobody gets a time for a wrong answer; whoever cannot take part, or does not fit the time that is left, is recorded with
the reason. Records are flushed to the result file as they are made.
"""

from __future__ import annotations

import datetime
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.bench.machine import machine, versions
from hrnet_fast.bench.records import Record, Run
from hrnet_fast.inference.profile import ceilings
from hrnet_fast.measure import relative_error

Call = Callable[[], Any]
ROOT = Path(__file__).parents[1]
# Bytes that are written before every timed call on a GPU, whose cache would else hold what a pipeline brings anew.
COLD_BYTES = 256 << 20
WARM_UPS = 3  # of operators
SECONDS_OF_OPERATOR = 8.0  # after which no further turn begins


@dataclass
class Entry:
    """A contender of one case.

    Attributes:
        prepare: returns the call that is timed; its own seconds, with the first answer, are the set-up.
        unavailable: why it cannot take part, if so.
        case, contender: of its record, where cases of several networks are timed in one run; None are the case's, and
            the entry's own name.
        params, flops, bytes, paper: of its record, besides the case's.
        exact: returns the answer in float64 that its own is held to; None: there is nothing to compare with.
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
    """What is computed and how its records are called; see Record."""

    suite: str
    name: str
    quantity: str
    dtype: torch.dtype
    params: dict[str, Any] = field(default_factory=dict)


class Session:
    """The run of one ``pytest benchmarks/``."""

    def __init__(self, options: Mapping[str, Any], measuring: bool) -> None:
        self.measuring = measuring
        self.device = torch.device(options["device"])
        self.scale = options["scale"]
        self.dtypes = options["dtypes"]
        self.contenders = options["contenders"]
        self.deadline = time.monotonic() + 60 * options["budget"]
        self.path: Path | None = options["results"]
        self.calls: dict[str, Call] = {}  # of the last case, by name: those that were measured
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        shown = {k: str(v) for k, v in options.items() if k != "results"}
        self.run = Run(now.isoformat(), revision(), machine(self.device), versions(), shown)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # for all contenders: some set it by themselves
        if measuring:
            self._measure_ceilings()

    def wants(self, contender: str) -> bool:
        """Whether ``--contenders`` asks for one; without the option, for all that are quick to set up."""
        return self.contenders is None or any(part.lower() in contender.lower() for part in self.contenders)

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

    def add(self, *records: Record) -> None:
        self.run.records += records
        if self.path is not None:
            self.run.save(self.path)

    def compare(
        self,
        benchmark: Any,
        case: Case,
        entries: Mapping[str, Entry],
        *,
        seconds: float = 20.0,
        rounds: tuple[int, int] = (3, 15),
        baseline: str | None = None,
    ) -> dict[str, float]:
        """Time `entries` in turns and record all; return the medians of those that were measured.

        Args:
            benchmark: pytest-benchmark's fixture: it carries the rounds, one of which calls every contender once.
            seconds: what the rounds may take, between `rounds` (fewest, most) of them.
            baseline: the contender twice whose error, plus a rounding, is the limit of all; None is the first.
        """
        wanted = {name: entry for name, entry in entries.items() if self.wants(entry.contender or name)}
        ready: dict[str, Call] = {}
        self.calls = ready
        answers: dict[str, Any] = {}
        about: dict[str, dict[str, Any]] = {name: self._about(case, entry, name) for name, entry in wanted.items()}
        for name, entry in wanted.items():
            if entry.unavailable is not None:
                self._give_up(about[name], "unavailable", entry.unavailable)
            elif self.measuring and self.left() < 0:
                self._give_up(about[name], "out of time", "the time budget was spent before its turn")
            else:
                self._prepare(name, entry, about[name], ready, answers)
        self._check(case, wanted, about, ready, answers, baseline)
        if not ready:
            return {}
        # The first round tells how many fit. All have answered once before.
        start = time.perf_counter()
        times = {name: [self._timed(call)] for name, call in ready.items()}
        whole = max(time.perf_counter() - start, 1e-6)
        fewest, most = rounds
        budget = min(seconds, max(0.0, self.left()))
        count = min(most, max(fewest, int(budget / whole))) if self.measuring else 2

        def turn() -> None:  # nobody always follows the same one
            order = list(ready)
            k = len(times[order[0]]) % len(order)
            for name in order[k:] + order[:k]:
                times[name].append(self._timed(ready[name]))

        benchmark.pedantic(turn, rounds=count - 1, warmup_rounds=0)
        medians: dict[str, float] = {}
        for name in ready:
            low, median, high = quartiles(times[name])
            medians[name] = median
            self.add(Record(**about[name], value=median, low=low, high=high, rounds=len(times[name])))
        benchmark.extra_info.update({f"{name}_ms": round(s * 1e3, 3) for name, s in medians.items()})
        if self.measuring:
            shown = ", ".join(f"{name} {s * 1e3:.2f}" for name, s in medians.items())
            print(f"\n{case.suite}: {case.name}, {case.quantity}, {str(case.dtype)[6:]}: {shown} ms")
        return medians

    def operator(
        self,
        case: Case,
        calls: Mapping[str, Call],
        rounds: int = 15,
        *,
        moving: Sequence[Tensor] = (),
        cost: tuple[float, float] | None = None,
    ) -> dict[str, float]:
        """Time an operator's implementations in turns, whose answers the caller has checked; return the medians.

        Args:
            moving: tensors that any implementation has to read. With what the first call returns, and its FLOPs, they
                make the device's limit.
            cost: FLOPs and bytes, where no call of PyTorch's tells them.
        """
        if cost is None and moving:
            with FlopCounterMode(display=False) as counter:
                made = next(iter(calls.values()))()
            alive = [*moving, *(t for t in tree_leaves(made) if isinstance(t, Tensor))]
            cost = float(counter.get_total_flops()), float(sum(t.numel() * t.element_size() for t in alive))
        flops, moved = cost or (None, None)
        if self.measuring and self.left() < 0:
            for name in calls:
                about = self._about(case, Entry(lambda: lambda: None), name)
                self._give_up(about, "out of time", "the time budget was spent before its turn")
            pytest.skip("the time budget is spent")
        times: dict[str, list[float]] = {name: [] for name in calls}
        start = time.perf_counter()
        for turn in range(rounds + WARM_UPS if self.measuring else 1):
            spent = time.perf_counter() - start
            # What takes seconds, as steps of training, is warm after one turn, and measured thrice at least.
            if spent > SECONDS_OF_OPERATOR and len(times[next(iter(calls))]) >= 3:
                break
            for name, call in calls.items():
                seconds = self._timed(call)
                if turn >= WARM_UPS or spent > 1.0 or not self.measuring:
                    times[name].append(seconds)
        medians: dict[str, float] = {}
        for name, values in times.items():
            low, medians[name], high = quartiles(values)
            about = self._about(case, Entry(lambda: lambda: None, flops=flops, bytes=moved), name)
            self.add(Record(**about, value=medians[name], low=low, high=high, rounds=len(values)))
        return medians

    def bytes(self, case: Case, contender: str, value: float, note: str = "", **more: Any) -> None:
        """Record an amount of memory."""
        if self.wants(contender):
            about = self._about(case, Entry(lambda: lambda: None, **more), contender)
            about |= {"note": note, "unit": "byte"}
            self.add(Record(**about, value=value, low=value, high=value, rounds=1))

    def _about(self, case: Case, entry: Entry, name: str) -> dict[str, Any]:
        dtype = str(case.dtype).removeprefix("torch.")
        about: dict[str, Any] = {
            "suite": case.suite,
            "case": entry.case or case.name,
            "contender": entry.contender or name,
            "quantity": case.quantity,
            "dtype": dtype,
            "params": {**case.params, **entry.params},
            "paper": entry.paper,
        }
        if entry.flops is not None and entry.bytes is not None:
            about |= {"flops": entry.flops, "bytes": entry.bytes, "limit_s": self.limit(entry, dtype)}
        return about

    def limit(self, entry: Entry, dtype: str) -> float | None:
        """The least seconds that this device's measured copy and matrix product allow."""
        top = self.run.ceilings
        if f"matmul {dtype}" not in top or entry.flops is None or entry.bytes is None:
            return None
        return max(entry.flops / top[f"matmul {dtype}"], entry.bytes / top["copy"])

    def _prepare(
        self, name: str, entry: Entry, about: dict[str, Any], ready: dict[str, Call], answers: dict[str, Any]
    ) -> None:
        start = time.perf_counter()
        try:
            call = entry.prepare()
            answer = call()
            self._synchronize()
        except Exception as error:  # whatever a contender raises is its own record
            if not self.measuring:
                raise
            self._give_up(about, "failed", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            return
        about["setup_s"] = time.perf_counter() - start
        ready[name], answers[name] = call, [t.cpu() for t in tree_leaves(answer) if isinstance(t, Tensor)]

    def _check(
        self,
        case: Case,
        entries: Mapping[str, Entry],
        about: dict[str, dict[str, Any]],
        ready: dict[str, Call],
        answers: dict[str, Any],
        baseline: str | None,
    ) -> None:
        """Drop contenders whose answer is outside of the error budget."""
        half = case.dtype in (torch.float16, torch.bfloat16)
        rounding = 2.0**-8 if half else 2.0**-22
        exacts: dict[int, Any] = {}
        errors: dict[str, float] = {}
        for name in list(ready):
            exact = entries[name].exact
            if exact is None:
                continue
            wanted = exacts.setdefault(id(exact), exact())
            errors[name] = relative_error(answers[name], wanted)
        for name, error in errors.items():
            peer = self._peer(name, errors, entries, baseline)
            limit = 2 * errors[peer] + rounding
            about[name] |= {"error": error, "limit": limit}
            if not error <= limit:
                self._give_up(about[name], "wrong", f"error {error:.1e}, allowed is {limit:.1e}")
                del ready[name]

    @staticmethod
    def _peer(name: str, errors: Mapping[str, float], entries: Mapping[str, Entry], baseline: str | None) -> str:
        """Whose error limits a contender's: the baseline, or the first that computes the same."""
        if baseline is not None and baseline in errors:
            return baseline
        return next(other for other in errors if entries[other].exact is entries[name].exact)

    def _give_up(self, about: dict[str, Any], status: str, note: str) -> None:
        self.add(Record(**about, status=status, note=note))
        if self.measuring and status != "unavailable":
            print(f"\n{about['suite']}: {about['case']}, {about['quantity']}: {about['contender']} {status}: {note}")

    def _timed(self, call: Call) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        if not hasattr(self, "_cold"):
            self._cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device=self.device)
        self._cold.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / 1e3

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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


def revision() -> str:
    """Return the sources' git revision, with "-dirty" behind it where they were changed; "unknown" without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
