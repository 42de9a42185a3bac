"""Time and memory by batch, resolution and width: HRNetV1 for pose, eager and the engine."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import hrnet_fast as hf
from benchmarks.harness import Case, Entry, Session
from benchmarks.networks import exact, images, work
from benchmarks.peers import PEERS, copied_setup
from benchmarks.reports.records import Record
from hrnet_fast.demo.contenders import engine_of
from hrnet_fast.measure import peak_activations

# Axis: values at the paper's scale, and at the small scale. The other axes stay at width 32, 256x192 and batch 1.
AXES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "batch": ((1, 2, 4, 8, 16, 32, 64), (1, 2, 4)),
    "resolution": ((128, 256, 512, 1024, 2048), (128, 256, 384)),
    "width": ((18, 32, 40, 48, 64), (18, 32, 48)),
}
CONTENDERS = ("eager channels-last", "compile", "compile reduce-overhead", "hrnet_fast engine")
CASES = [(axis, value) for axis, (paper, small) in AXES.items() for value in sorted({*paper, *small})]


@pytest.fixture(scope="module")
def measured() -> dict[Any, list[Record]]:
    """Records by width, size and batch."""
    return {}


@pytest.mark.parametrize(("axis", "value"), CASES)
def bench_scaling(
    benchmark: BenchmarkFixture, session: Session, measured: dict[Any, list[Record]], axis: str, value: int
) -> None:
    paper, small = AXES[axis]
    if value not in (small if session.scale == "small" else paper) or (not session.measuring and value != 18):
        pytest.skip("not a case of this scale")
    batch = value if axis == "batch" else 1
    width = value if axis == "width" else 32
    size = (value, value) if axis == "resolution" else (256, 192)
    if not session.measuring:
        size = (64, 64)
    point = (width, size, batch)
    if point in measured:  # the axes have it in common
        session.add(*(dataclasses.replace(r, suite=f"scaling {axis}") for r in measured[point]))
        pytest.skip("measured on another axis")
    before = len(session.run.records)
    torch.manual_seed(0)
    config = hf.HRNetConfig.make(width, "v1", 17, upsample="nearest")
    model = hf.HRNet(config, impl="reference").eval()
    x = images(batch, size, session.device)
    truth = functools.cache(functools.partial(exact, copy.deepcopy(model), x))
    model = model.to(session.device)
    dtype = session.dtypes[0]
    cost = work(copy.deepcopy(model), x, dtype)
    params: dict[str, Any] = {
        "width": width,
        "batch": batch,
        "resolution": size[0],
        "height": size[0],
        "width_px": size[1],
    }
    entries = {}
    for name in CONTENDERS:
        peer = PEERS[name]
        if peer.unavailable(session.device.type, dtype, session.asked) is None:
            entries[name] = Entry(copied_setup(model, peer.prepare, x, dtype), exact=truth, params=params, **cost)
    what = f"HRNetV1-W{width} {size[0]}x{size[1]} batch {batch}"
    case = Case(f"scaling {axis}", what, "inference", dtype)
    session.time_networks(benchmark, case, entries, seconds=2, rounds=(3, 11))
    if session.measuring and session.device.type == "cpu":
        memory = Case(case.suite, what, "inference memory", dtype)
        plain = copy.deepcopy(model).to(dtype)
        with torch.inference_mode():
            eager = peak_activations(lambda: plain(x.to(dtype)))
        engine = engine_of(session.calls.get("hrnet_fast engine"))
        session.add_bytes(memory, "eager channels-last", eager, "maps alive at once", params=params)
        if engine is not None:
            session.add_bytes(memory, "hrnet_fast engine", engine.memory(), "maps alive at once", params=params)
    measured[point] = session.run.records[before:]
