"""Schema of result files: every figure with its spread and error, and the machine it was measured on.

A file is JSON: a `Run`. It is written anew after each record, so a run that is cut off keeps its figures.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hrnet_fast.errors import InputError
from hrnet_fast.whole_files import written_whole

SCHEMA = 1
# "wrong": the error exceeds its limit, so there is no time. "unavailable": not installed or not for this device.
STATUSES = ("measured", "wrong", "unavailable", "failed", "out of time")
UNITS = ("s", "byte", "FLOP/s", "byte/s", "launch", "ratio")


@dataclass(frozen=True)
class Record:
    """One contender in one case: its figure, or the reason why there is none.

    Attributes:
        suite: the group of cases, such as "inference", "table 17", "scaling batch", "operators".
        case: what is computed, the same for all contenders that are compared, such as
            "hrnetv1_w32_pose 256x192 batch 1".
        quantity: what the figure is: "inference", "training step", "inference memory", "training memory", "forward",
            "backward" and the like.
        contender: what computes it, such as "eager channels-last", "engine".
        dtype: torch's name of the dtype of the computation.
        status: one of STATUSES; only "measured" has a value.
        value: median over interleaved rounds, in `unit`.
        low, high: first and third quartile over rounds; equal to the value where there is no spread (bytes, launches).
        rounds: number of rounds.
        unit: one of UNITS. A ratio is to the baseline's time in the same round.
        setup_s: seconds before the first result: compiling, exporting, folding, packing.
        error: relative L2 distance to the float64 result; limit: the largest error that is accepted.
        note: the reason for a missing value, or a remark on it.
        params: the parameters of the case: model, batch, height, width, ...
        flops, bytes: floating-point operations of a call and the least bytes that it must move.
        limit_s: the least seconds that the device's measured ceilings allow for these.
        paper: the paper's own figure in the same unit: {"table", "row", "column", "value"}.
    """

    suite: str
    case: str
    quantity: str
    contender: str
    dtype: str
    status: str = "measured"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    unit: str = "s"
    setup_s: float | None = None
    error: float | None = None
    limit: float | None = None
    note: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    flops: float | None = None
    bytes: float | None = None
    limit_s: float | None = None
    paper: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InputError(f"status {self.status!r} of a benchmark record is none of {', '.join(STATUSES)}.")
        if self.unit not in UNITS:
            raise InputError(f"unit {self.unit!r} of a benchmark record is none of {', '.join(UNITS)}.")
        if (self.status == "measured") != (self.value is not None):
            raise InputError(f"{self.key}: a record has a value if and only if it was measured.")
        if self.value is not None and not (math.isfinite(self.value) and self.value >= 0):
            raise InputError(f"{self.key}: {self.value} is no figure.")

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two records of different files the same measurement."""
        return self.suite, self.case, self.quantity, self.dtype, self.contender

    @property
    def interquartile_range(self) -> tuple[float, float] | None:
        """First and third quartile; None without a value or where the file has none."""
        if self.value is None or self.low is None or self.high is None:
            return None
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return None
        # The median lies between them, however they were interpolated.
        return min(self.low, self.high, self.value), max(self.low, self.high, self.value)


@dataclass
class Run:
    """A result file.

    Attributes:
        created: ISO 8601 time, UTC.
        revision: of the sources, "-dirty" behind it if they were changed, or "unknown".
        machine: {"device": name, "kind": "cpu" or "cuda", "threads": int, ...}.
        versions: of Python and of the packages that are measured.
        options: of the benchmark run.
        ceilings: measured speed of the device: "copy" in byte/s, "matmul float32" and the like in FLOP/s.
    """

    created: str
    revision: str
    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the file in one step: readers never see half of it."""
        data = {"schema": SCHEMA, **asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_run(path: Path) -> Run:
    """Read a result file.

    Raises:
        InputError: it cannot be read, or does not have the schema.
    """
    try:
        return parse_run(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a result file: {error.strerror or error}.") from error


def parse_run(content: bytes, source: str) -> Run:
    """Make a run of a result file's content; errors call it `source`.

    Raises:
        InputError: it does not have the schema.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} cannot be read as a result file: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{source} is no result file of schema {SCHEMA} (found {found}); run the benchmarks again.")
    try:
        known = {f.name for f in fields(Run)}
        run = Run(**{k: v for k, v in data.items() if k in known and k != "records"})
        run.records = [Record(**record) for record in data["records"]]
    except (TypeError, KeyError, InputError) as error:
        raise InputError(f"{source} is no valid result file: {error}") from error
    _check_types(run, source)
    for i, record in enumerate(run.records):
        _check_types(record, f"{source}: record {i}")
    return run


def _check_types(made: Run | Record, source: str) -> None:
    """Compare values with the schema's types: a dataclass takes any value, and a table would fail on it later."""
    hints = typing.get_type_hints(type(made))
    for f in fields(made):
        value = getattr(made, f.name)
        if not _has_type(value, hints[f.name]):
            raise InputError(f"{source} is no valid result file: {f.name} is {value!r}.")


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is list:
        return True
    if origin is types.UnionType:
        return any(_has_type(value, h) for h in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(_has_type(v, arguments[1]) for v in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not isinstance(value, bool)


def by_case(records: Sequence[Record]) -> dict[tuple[str, str, str, str], list[Record]]:
    """Group records that are compared with each other: (suite, case, quantity, dtype) to contenders, in order."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault(record.key[:4], []).append(record)
    return groups


def by_suite(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by suite, in order."""
    suites: dict[str, list[Record]] = {}
    for record in records:
        suites.setdefault(record.suite, []).append(record)
    return suites
