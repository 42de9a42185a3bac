"""Profiles: the time of every step by itself, and the device's measured limits."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hrnet_fast.measure import wall_seconds

if TYPE_CHECKING:
    from hrnet_fast.inference.execution.executors import Executor


@dataclass(frozen=True)
class Ceilings:
    """Measured limits: bytes per second of a copy (read and written), and FLOP/s of a matrix product."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True)
class StepTime:
    """One step: its description, the seconds it took by itself, its least bytes, and its FLOPs."""

    step: int
    what: str
    seconds: float
    bytes: int
    flops: int

    def share_of(self, ceilings: Ceilings) -> float:
        """Return the least seconds that the ceilings allow, over those taken."""
        least = max(self.bytes / ceilings.bytes_per_second, self.flops / ceilings.flops_per_second)
        return least / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Times of all steps, seconds of a whole call, and the device's ceilings. ``str(profile)`` is a table."""

    steps: tuple[StepTime, ...]
    seconds: float
    ceilings: Ceilings

    def __str__(self) -> str:
        top = self.ceilings
        lines = [
            f"whole call {self.seconds * 1e3:.2f} ms, steps alone {sum(s.seconds for s in self.steps) * 1e3:.2f} ms; "
            f"device: copy {top.bytes_per_second / 1e9:.1f} GB/s, product {top.flops_per_second / 1e9:.0f} GFLOP/s",
            "      ms     GB/s  GFLOP/s  of limit  step",
        ]
        for s in sorted(self.steps, key=lambda s: -s.seconds):
            seconds = s.seconds or float("inf")
            lines.append(
                f"{s.seconds * 1e3:8.3f} {s.bytes / seconds / 1e9:8.1f} {s.flops / seconds / 1e9:8.0f} "
                f"{s.share_of(top):9.0%}  {s.what}"
            )
        return "\n".join(lines)


def profile(executor: Executor, x: Tensor, rounds: int) -> Profile:
    """Return the medians over `rounds` of an executor's times on `x`."""
    plan = executor.plan
    executor(x)  # the first call may allocate
    runs = [executor.profile(x) for _ in range(rounds)]
    wholes = [wall_seconds(lambda: executor(x), x.device) for _ in range(rounds)]
    steps = []
    for times in zip(*runs, strict=True):
        step = plan.steps[times[0][0]]
        seconds = statistics.median(t for _, t in times)
        steps.append(StepTime(times[0][0], plan.describe(step), seconds, plan.step_bytes(step), plan.step_flops(step)))
    return Profile(tuple(steps), statistics.median(wholes), ceilings(x.device, plan.dtype))


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a copy of 128 MiB and a matrix product of 2048 x 2048 on `device`, best of five."""
    source = torch.ones(2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = min(wall_seconds(lambda: target.copy_(source), device) for _ in range(5))
    a = torch.ones(2048, 2048, dtype=dtype, device=device)
    multiplied = min(wall_seconds(lambda: a @ a, device) for _ in range(5))
    return Ceilings(2 * source.numel() / copied, 2 * 2048**3 / multiplied)
