"""A training step by batch and resolution: its time and memory, of eager PyTorch, its checkpointing and ``accelerate``.

HRNetV1-W32 for pose, with the loss of ``hrnet_fast.training.losses``.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import hrnet_fast as hf
from benchmarks.harness import Case, Entry, Session, quartiles
from benchmarks.networks import exact, images
from benchmarks.reports.records import Record
from benchmarks.trainers import TRAINERS, Step, host_seconds, step_memory
from hrnet_fast.measure import relative_error

# Axis: values at the paper's scale, and at the small scale. Batches are of 256x192, squares are in batches of two.
AXES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "batch": ((1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8)),
    "resolution": ((64, 128, 256, 512, 1024), (64, 128, 256)),
}
CASES = [(axis, value) for axis, (paper, small) in AXES.items() for value in sorted({*paper, *small})]
SMOKE = ("batch", 2)


def network(width: int) -> nn.Module:
    """Return a network of plain modules with random weights; a width below the paper's has one unit in each branch."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_blocks": 1, "num_modules": (1, 1, 1), "stage1_blocks": 1} if width < 18 else {}
    return hf.HRNet(hf.HRNetConfig.make(width, "v1", 17, upsample="nearest", **sizes), impl="reference").train()


@pytest.fixture(scope="module")
def trainers(session: Session) -> dict[str, str | None]:
    """Return the contenders, and why one does not run; the others have been found to have eager's gradients.

    In float64, where rounding flips no ReLU, on a small network. Compiled ones are compared by their outputs alone.
    """
    found = {name: t.unavailable(session.device.type, session.asked) for name, t in TRAINERS.items()}
    x = images(2, (64, 64), session.device).double()
    expected: torch.Tensor | None = None
    for name, reason in found.items():
        if reason is None and not TRAINERS[name].slow and session.wants(name):
            step = Step(TRAINERS[name], network(4).to(session.device).double(), x, torch.float64)
            step.forward()[0].backward()
            gradient = torch.cat([p.grad.flatten() for p in step.parameters if p.grad is not None])
            expected = gradient if expected is None else expected
            assert relative_error(gradient, expected) < 1e-8, name
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("axis", "value"), CASES)
def bench_training(
    benchmark: BenchmarkFixture, session: Session, trainers: dict[str, str | None], axis: str, value: int, dtype: str
) -> None:
    paper, small = AXES[axis]
    precision = getattr(torch, dtype)
    if precision not in session.dtypes or value not in (small if session.scale == "small" else paper):
        pytest.skip("not a case of this run")
    if not session.measuring and ((axis, value) != SMOKE or precision != session.dtypes[0]):
        pytest.skip("measured, not part of the smoke test")
    batch = value if axis == "batch" else 2
    size = (value, value) if axis == "resolution" else (256, 192)
    width = 32
    if not session.measuring:
        size, width = (64, 64), 4
    model, x = network(width), images(batch, size, session.device)
    truth = functools.cache(functools.partial(exact, copy.deepcopy(model), x))
    model = model.to(session.device)
    params: dict[str, Any] = {"model": f"hrnetv1_w{width}_pose", "batch": batch, "resolution": size[0]}
    case = Case(
        f"scaling training {axis}", f"HRNetV1-W{width} {size[0]}x{size[1]} batch {batch}", "training step", precision,
        params,
    )  # fmt: skip
    entries = {}
    for name, reason in trainers.items():
        own = model if reason else copy.deepcopy(model)
        entries[name] = Entry(functools.partial(Step, TRAINERS[name], own, x, precision), reason, exact=truth)
    before = len(session.run.records)
    session.time_networks(benchmark, case, entries, seconds=4 if session.scale == "small" else 15, rounds=(3, 15))
    for record in [r for r in session.run.records[before:] if r.value]:
        step = session.calls[record.contender]
        assert isinstance(step, Step)
        if session.left() < 0:
            break
        _record_costs(session, case, record, step)


def _record_costs(session: Session, case: Case, record: Record, step: Step) -> None:
    """Record the memory of a step that has a time, and on CUDA how long the host takes to queue it."""
    memory = step_memory(step)
    for quantity, value in (("kept for backward", memory.kept), ("peak memory", memory.peak)):
        session.add_bytes(replace(case, quantity=quantity), record.contender, value)
    if session.device.type == "cuda":
        low, median, high = quartiles(times := host_seconds(step))
        about = {"quantity": "host time", "rounds": len(times), "setup_s": None, "error": None, "limit": None}
        session.add(replace(record, value=median, low=low, high=high, **about))
