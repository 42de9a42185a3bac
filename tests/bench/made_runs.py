"""Runs with invented figures for tests of reports and comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.reports.records import Record, Run

MACHINE = {"device": "Test CPU 3000", "kind": "cpu", "threads": 4}
VERSIONS = {"torch": "2.10.0", "hrnet_fast": "0.1.0"}
CASE = "hrnetv1_w32_pose 256x192 batch 1"


def measured(contender: str, value: float, spread: float = 0.02, **given: Any) -> Record:
    """A record with quartiles `spread` apart, relative to the value."""
    about: dict[str, Any] = {
        "suite": "inference",
        "case": CASE,
        "quantity": "inference",
        "dtype": "float32",
        "rounds": 20,
        "error": 1e-6,
        "limit": 1e-5,
        "low": value * (1 - spread / 2),
        "high": value * (1 + spread / 2),
    }
    return Record(contender=contender, value=value, **{**about, **given})


def missing(contender: str, status: str, note: str = "", **given: Any) -> Record:
    about: dict[str, Any] = {"suite": "inference", "case": CASE, "quantity": "inference", "dtype": "float32"}
    return Record(contender=contender, status=status, note=note, **{**about, **given})


# As a program's mistake would leave it: times that no report may show, whatever the file holds beside the status.
WRONG = missing("compiled", "wrong", error=0.03, limit=1e-3, low=0.0777, high=0.0888, setup_s=77.7, rounds=20)
ABSENT = missing("openvino", "unavailable", "openvino is not installed")


def run_of(records: Sequence[Record], **given: Any) -> Run:
    about: dict[str, Any] = {
        "created": "2026-03-04T05:06:07+00:00",
        "revision": "abc1234",
        "machine": dict(MACHINE),
        "versions": dict(VERSIONS),
        "options": {"scale": "quick", "rounds": 20},
        "ceilings": {"copy": 2e10, "matmul float32": 5e11},
    }
    return Run(records=list(records), **{**about, **given})


def full_run() -> Run:
    """Every kind of suite and of status."""
    operator = {"suite": "operators", "case": "fuse_sum 4 branches", "quantity": "forward"}
    records = [
        measured("eager", 0.1, setup_s=0.0),
        measured("engine", 0.04, setup_s=1.25),
        WRONG,
        ABSENT,
        missing("onnxruntime", "failed", "RuntimeError:\nno | such <op> --> `x`"),
        missing("openvino int8", "out of time"),
        measured("eager", 300 * 2.0**20, quantity="inference memory", unit="byte", low=None, high=None),
        measured("engine", 40 * 2.0**20, quantity="inference memory", unit="byte", low=None, high=None),
        measured("eager", 4e-4, **operator),
        measured("fused cpu", 1e-4, flops=1e7, bytes=1e6, limit_s=5e-5, note="in place", **operator),
    ]
    for batch in (1, 2, 4, 8):
        given = {"suite": "scaling batch", "params": {"model": "hrnetv1_w32_pose", "batch": batch}}
        case = f"hrnetv1_w32_pose batch {batch}"
        records += [
            measured("eager", 0.05 + 0.05 * batch, case=case, **given),
            measured("engine", 0.04 * batch, case=case, **given),
        ]
    return run_of([*records, *paper_records()])


def paper_records() -> list[Record]:
    """Table 17's HRNet beside two of its rivals; the engine runs HRNet only."""
    figures = {
        "hrnetv1_w32_pose": ("hrnet", 0.057, {"eager": 0.12, "engine": 0.06}),
        "simplebaseline_r50": ("rival", 0.012, {"eager": 0.04}),
        "simplebaseline_r152": ("rival", 0.030, {"eager": 0.08, "engine": 0.05}),
    }
    return [
        measured(
            contender,
            value,
            suite="table 17",
            case=f"{row} 256x192 batch 1",
            params={"role": role, "table": "17", "row": row, "batch": 1},
            paper={"table": "17", "row": row, "column": "infer_s_bs1", "value": printed},
        )
        for row, (role, printed, runs) in figures.items()
        for contender, value in runs.items()
    ]


def slowed(run: Run, factor: float, contender: str = "fused cpu") -> Run:
    """The run with one contender's times multiplied."""

    def change(record: Record) -> Record:
        if record.contender != contender or record.value is None:
            return record
        low, high = ((end or record.value) * factor for end in (record.low, record.high))
        return dataclasses.replace(record, value=record.value * factor, low=low, high=high)

    return dataclasses.replace(run, records=[change(r) for r in run.records])


def sampled(seconds: np.ndarray, **given: Any) -> Record:
    """A record as the benchmarks make one of the rounds' times."""
    low, median, high = (float(q) for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return measured("engine", median, **{"low": low, "high": high, "rounds": len(seconds), **given})
