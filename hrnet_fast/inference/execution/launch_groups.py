"""Steps as they are launched: each by itself, or the branches' parallel 3x3 convolutions together."""

from __future__ import annotations

from collections.abc import Sequence

from hrnet_fast.inference.plan import ConvStep, Plan, groupable

MAX_BRANCHES = 8  # of one grouped_conv3x3


def convolution(plan: Plan, i: int) -> ConvStep:
    """Return the step of this number, which is one."""
    step = plan.steps[i]
    assert isinstance(step, ConvStep)
    return step


def single_units(plan: Plan) -> list[tuple[int, ...]]:
    """Return every step by itself."""
    return [(i,) for wave in plan.waves for i in wave]


def grouped_units(plan: Plan) -> list[tuple[int, ...]]:
    """Return steps as they are launched: of a wave, 3x3 convolutions that end alike together, where the first was."""
    units: list[tuple[int, ...]] = []
    for wave in plan.waves:
        groups: dict[tuple[bool, int], list[int]] = {}
        order: list[list[int]] = []
        for i in wave:
            step = plan.steps[i]
            channels = plan.shape(step.out)[1] if isinstance(step, ConvStep) else 0
            if not groupable(step) or convolution(plan, i).relu not in ((0, 0), (0, channels)):
                order.append([i])
                continue
            relu = convolution(plan, i).relu[1] > 0
            full = sum(len(g) for (r, _), g in groups.items() if r == relu) // MAX_BRANCHES
            if (relu, full) not in groups:
                groups[relu, full] = []
                order.append(groups[relu, full])
            groups[relu, full].append(i)
        units += [tuple(unit) for unit in order]
    return units


def last_units(plan: Plan, units: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Return buffers by the last unit of the last wave in which they are needed."""
    unit_of = {i: k for k, unit in enumerate(units) for i in unit}
    found: dict[int, list[int]] = {}
    for k, buffer in enumerate(plan.buffers):
        found.setdefault(max(unit_of[i] for i in plan.waves[buffer.last]), []).append(k)
    return found
