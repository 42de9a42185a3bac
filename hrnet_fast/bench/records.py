"""Result files: every figure with its spread, its correctness and the machine it was measured on.

A file is JSON: a `Run`, whose `records` are flushed as they are made, so that a run that is cut off keeps what it
measured.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hrnet_fast.errors import InputError

SCHEMA = 1
# "wrong": outside of the error budget, so it gets no time. "unavailable": not installed or not for this device.
STATUSES = ("measured", "wrong", "unavailable", "failed", "out of time")
UNITS = ("s", "byte", "FLOP/s", "byte/s")


@dataclass(frozen=True)
class Record:
    """One contender in one case: what was measured, or why it was not.

    Attributes:
        suite: what the case belongs to, such as "inference", "table 17", "scaling batch", "operators".
        case: what is computed, the same for all contenders that are compared, such as
            "hrnetv1_w32_pose 256x192 batch 1".
        quantity: what the figure is: "inference", "training step", "inference memory", "training memory", "forward",
            "backward" and the like.
        contender: who computes it, such as "eager channels-last", "engine".
        dtype: torch's name of what it computes in.
        status: one of STATUSES; only "measured" has a value.
        value: median over interleaved rounds, in `unit`.
        low, high: first and third quartile over rounds; equal to the value where there is no spread (bytes).
        rounds: how many.
        unit: one of UNITS.
        setup_s: seconds before the first answer: compiling, exporting, folding, packing.
        error: relative L2 distance to the exact (float64) answer; limit: what it may be.
        note: why there is no value, or what a reader must know of it.
        params: what made the case: model, batch, height, width, ...
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


@dataclass
class Run:
    """A result file.

    Attributes:
        created: ISO 8601 time, UTC.
        revision: of the sources, "-dirty" behind it if they were changed, or "unknown".
        machine: {"device": name, "kind": "cpu" or "cuda", "threads": int, ...}.
        versions: of the packages that took part.
        options: that the benchmarks were run with.
        ceilings: what the device reached here: "copy" in byte/s, "matmul float32" and the like in FLOP/s.
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
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file, indent=1, sort_keys=True)
                file.write("\n")
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def load_run(path: str | Path) -> Run:
    """Read a result file.

    Raises:
        InputError: it cannot be read, or is not one that this version writes.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as a result file: {error}") from error
    return parse_run(data, str(path))


def parse_run(data: Any, source: str) -> Run:
    """Make a run of a result file's content; `source` is what errors call it.

    Raises:
        InputError: it is not what this version writes.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{source} is no result file of schema {SCHEMA} (found {found}); run the benchmarks again.")
    try:
        known = {f.name for f in fields(Run)}
        run = Run(**{k: v for k, v in data.items() if k in known and k != "records"})
        run.records = [Record(**record) for record in data["records"]]
    except (TypeError, KeyError, InputError) as error:
        raise InputError(f"{source} is no valid result file: {error}") from error
    return run


def by_case(records: Sequence[Record]) -> dict[tuple[str, str, str, str], list[Record]]:
    """Group what was compared with each other: (suite, case, quantity, dtype) to contenders, in order."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault(record.key[:4], []).append(record)
    return groups


def file_stem(run: Run) -> str:
    """Return a file name for a run: the device's name and the kind of run, in lower case with dashes."""
    words = f"{run.machine.get('device', 'unknown')} {run.options.get('scale', '')}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
