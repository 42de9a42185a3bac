"""Schedules: every hazard over bytes of the arena is ordered, whatever order the streams' work then happens in."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from plan_cases import tiny_case, touched
from tiny_networks import maps, relative_l2
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.inference.execution.arena import ArenaMaps, adoptable, arena_layout
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.evaluator import interpret
from hrnet_fast.inference.execution.stream_schedule import MAX_LANES, Schedule, schedule
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan

CPU = torch.device("cpu")
HEADS = ["v1", "v2", "v2p", "ocr", "c", "cii"]


def in_order(made: Schedule) -> list[int]:
    """Return, as bits, the units that are over when each one begins: by streams and events, by nothing else."""
    over: list[int] = []
    last: dict[int, int] = {}
    for unit, lane in enumerate(made.lanes):
        before = 0
        for other in (*made.waits[unit], *([last[lane]] if lane in last else [])):
            assert other < unit
            before |= over[other] | 1 << other
        over.append(before)
        last[lane] = unit
    return over


def unordered(plan: Plan, places: ArenaMaps, units: list[tuple[int, ...]], made: Schedule) -> list[tuple[int, int]]:
    """Return pairs of units that touch the same elements, one of them writing, in no given order."""
    access = [touched(plan, places, unit) for unit in units]
    over = in_order(made)
    return [
        (i, j)
        for j, (read, written) in enumerate(access)
        for i in range(j)
        if not over[j] >> i & 1 and (access[i][1] & (read | written) or access[i][0] & written)
    ]


def units_of(plan: Plan) -> list[tuple[int, ...]]:
    return [(i,) for wave in plan.waves for i in wave]


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_hazard_is_ordered(head: str, adopted: bool) -> None:
    side = 64 if head == "v2p" else 32  # its levels need as much
    plan, _, _ = tiny_case(head, torch.float16, 1, side, side)
    layout = arena_layout(plan, adoptable(plan) if adopted else ())
    places, units = ArenaMaps(plan, layout, CPU), units_of(plan)
    for lanes in (1, 2, 3, MAX_LANES):
        made = schedule(plan, layout, units, lanes)
        assert made.count <= lanes
        assert unordered(plan, places, units, made) == []


def test_hazards_of_a_full_network() -> None:
    """Of HRNetV1-W32; branches do run side by side, with fewer waits than waves would need."""
    model = hf.create_model("hrnetv1_w32_pose").eval()
    plan = make_plan(model, (1, 3, 64, 64), torch.float16)
    layout, units = arena_layout(plan), units_of(plan)
    made = schedule(plan, layout, units)
    assert unordered(plan, ArenaMaps(plan, layout, CPU), units, made) == []
    assert made.count == MAX_LANES
    assert min(made.lanes.count(lane) for lane in range(MAX_LANES)) > len(units) / 10
    assert sum(map(len, made.waits)) < (MAX_LANES - 1) * len(plan.waves)
    assert set(made.joins) <= made.signals
    assert {w for waits in made.waits for w in waits} <= made.signals


def test_the_simulation_sees_a_missing_wait() -> None:
    """Of waits that are there, hardly any can go: the check above can fail."""
    plan, _, _ = tiny_case("v1", torch.float16, 1, 32, 32)
    layout, units = arena_layout(plan), units_of(plan)
    places, made = ArenaMaps(plan, layout, CPU), schedule(plan, layout, units)
    waiting = [u for u, waits in enumerate(made.waits) if waits]
    caught = 0
    for u in waiting:
        waits = tuple(() if v == u else w for v, w in enumerate(made.waits))
        caught += bool(unordered(plan, places, units, Schedule(made.lanes, waits, made.signals, made.joins)))
    assert caught == len(waiting)


def test_shared_memory_makes_waits_of_its_own() -> None:
    """Some pairs are ordered for no value's sake, but because they share bytes."""
    plan, _, _ = tiny_case("v1", torch.float16, 1, 32, 32)
    units = units_of(plan)
    by_values = schedule(plan, arena_layout(plan, range(len(plan.buffers))), units)
    assert unordered(plan, ArenaMaps(plan, arena_layout(plan), CPU), units, by_values)


class _Shuffled:
    """Runs steps in an order that streams could happen to take: as late or as early as their waits allow."""

    def __init__(self, run: TorchExecutor, made: Schedule, seed: int) -> None:
        draw, over = random.Random(seed), in_order(made)
        self.order: list[int] = []
        done, left = 0, set(range(len(over)))
        while left:
            ready = sorted(u for u in left if over[u] & ~done == 0)
            unit = draw.choice(ready)
            self.order.append(unit)
            done |= 1 << unit
            left.remove(unit)
        self.run = run

    def __call__(self, x: Tensor) -> Any:
        units, last = self.run.units, self.run._last
        self.run.units, self.run._last = [units[u] for u in self.order], {}

        @contextlib.contextmanager
        def around(unit: int) -> Iterator[None]:
            yield

        try:
            with torch.no_grad():
                return self.run.run(x, around=around)
        finally:
            self.run.units, self.run._last = units, last


@pytest.mark.parametrize("way", ["library", "onednn"])
@pytest.mark.parametrize("head", ["v1", "v2", "ocr"])
def test_any_order_that_a_schedule_allows_gives_the_same(head: str, way: str) -> None:
    plan, tensors, x = tiny_case(head, torch.float32)
    run = TorchExecutor(plan, tensors, "cpu", chooser=Autotuner(CPU, plan.dtype, way))
    made = schedule(plan, run.maps.layout, run.units)
    expected = maps(interpret(plan, tensors, x))
    seen = set()
    for seed in range(6):
        shuffled = _Shuffled(run, made, seed)
        seen.add(tuple(shuffled.order))
        for actual, right in zip(maps(shuffled(x)), expected, strict=True):
            assert relative_l2(actual, right) <= 2e-6
    assert len(seen) > 3
