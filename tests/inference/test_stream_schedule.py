"""Schedules: every hazard over bytes of the arena is ordered, whatever order the streams' work then happens in."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
import torch
from plan_cases import tiny_case, touched
from tiny_networks import maps, relative_l2
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.inference.execution.arena import ArenaMaps, adoptable, arena_layout
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.execution.launch_groups import LaunchGroup, launch_groups
from hrnet_fast.inference.execution.stream_schedule import MAX_STREAMS, StreamSchedule, schedule
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan

CPU = torch.device("cpu")
HEADS = ["v1", "v2", "v2p", "ocr", "c", "cii"]


def in_order(made: StreamSchedule) -> list[int]:
    """Return, as bits, the groups that are over when each one begins: by streams and events, by nothing else."""
    over: list[int] = []
    last: dict[int, int] = {}
    for group, stream in enumerate(made.streams):
        before = 0
        for other in (*made.waits[group], *([last[stream]] if stream in last else [])):
            assert other < group
            before |= over[other] | 1 << other
        over.append(before)
        last[stream] = group
    return over


def unordered(plan: Plan, places: ArenaMaps, groups: list[LaunchGroup], made: StreamSchedule) -> list[tuple[int, int]]:
    """Return pairs of groups that touch the same elements, one of them writing, in no given order."""
    access = [touched(plan, places, group) for group in groups]
    over = in_order(made)
    return [
        (i, j)
        for j, (read, written) in enumerate(access)
        for i in range(j)
        if not over[j] >> i & 1 and (access[i][1] & (read | written) or access[i][0] & written)
    ]


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_hazard_is_ordered(head: str, adopted: bool) -> None:
    side = 64 if head == "v2p" else 32  # its levels need as much
    plan, _, _ = tiny_case(head, torch.float16, 1, side, side)
    layout = arena_layout(plan, adoptable(plan) if adopted else ())
    places, groups = ArenaMaps(plan, layout, CPU), launch_groups(plan)
    for streams in (1, 2, 3, MAX_STREAMS):
        made = schedule(plan, layout, groups, streams)
        assert made.count <= streams
        assert unordered(plan, places, groups, made) == []


@pytest.mark.no_cover
@pytest.mark.slow
def test_hazards_of_a_full_network() -> None:
    """Of HRNetV1-W32; branches do run side by side, with fewer waits than waves would need."""
    model = hf.create_model("hrnetv1_w32_pose").eval()
    plan = make_plan(model, (1, 3, 64, 64), torch.float16)
    layout, groups = arena_layout(plan), launch_groups(plan)
    made = schedule(plan, layout, groups)
    assert unordered(plan, ArenaMaps(plan, layout, CPU), groups, made) == []
    assert made.count == MAX_STREAMS
    assert min(made.streams.count(stream) for stream in range(MAX_STREAMS)) > len(groups) / 10
    assert sum(map(len, made.waits)) < (MAX_STREAMS - 1) * len(plan.waves)
    assert set(made.joins) <= made.signals
    assert {w for waits in made.waits for w in waits} <= made.signals


def test_the_simulation_sees_a_missing_wait() -> None:
    """Of waits that are there, hardly any can go: the check above can fail."""
    plan, _, _ = tiny_case("v1", torch.float16, 1, 32, 32)
    layout, groups = arena_layout(plan), launch_groups(plan)
    places, made = ArenaMaps(plan, layout, CPU), schedule(plan, layout, groups)
    waiting = [u for u, waits in enumerate(made.waits) if waits]
    caught = 0
    for u in waiting:
        waits = tuple(() if v == u else w for v, w in enumerate(made.waits))
        caught += bool(unordered(plan, places, groups, StreamSchedule(made.streams, waits, made.signals, made.joins)))
    assert caught == len(waiting)


def test_shared_memory_makes_waits_of_its_own() -> None:
    """Some pairs are ordered for no value's sake, but because they share bytes."""
    plan, _, _ = tiny_case("v1", torch.float16, 1, 32, 32)
    groups = launch_groups(plan)
    by_values = schedule(plan, arena_layout(plan, range(len(plan.buffers))), groups)
    assert unordered(plan, ArenaMaps(plan, arena_layout(plan), CPU), groups, by_values)


class _Shuffled:
    """Runs steps in an order that streams could happen to take: as late or as early as their waits allow."""

    def __init__(self, run: TorchExecutor, made: StreamSchedule, seed: int) -> None:
        draw, over = random.Random(seed), in_order(made)
        self.order: list[int] = []
        done, left = 0, set(range(len(over)))
        while left:
            ready = sorted(u for u in left if over[u] & ~done == 0)
            group = draw.choice(ready)
            self.order.append(group)
            done |= 1 << group
            left.remove(group)
        self.run = run

    def __call__(self, x: Tensor) -> Any:
        groups, last = self.run.groups, self.run._last
        self.run.groups, self.run._last = [groups[g] for g in self.order], {}
        try:
            with torch.no_grad():
                return self.run.run(x, streams=_NoStreams())
        finally:
            self.run.groups, self.run._last = groups, last


class _NoStreams:
    """Keeps tensors as streams ask for, and runs everything in order."""

    def __call__(self, group: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def join(self) -> None:
        pass


@pytest.mark.parametrize("tactic", ["library", "onednn"])
@pytest.mark.parametrize("head", ["v1", "v2", "ocr"])
def test_any_order_that_a_schedule_allows_gives_the_same(head: str, tactic: str) -> None:
    plan, tensors, x = tiny_case(head, torch.float32)
    run = TorchExecutor(plan, tensors, "cpu", autotuner=Autotuner(CPU, plan.dtype, tactic))
    made = schedule(plan, run.maps.layout, run.groups)
    expected = maps(evaluate(plan, tensors, x))
    seen = set()
    for seed in range(6):
        shuffled = _Shuffled(run, made, seed)
        seen.add(tuple(shuffled.order))
        for actual, right in zip(maps(shuffled(x)), expected, strict=True):
            assert relative_l2(actual, right) <= 2e-6
    assert len(seen) > 3
