"""Which steps run side by side: a lane (a stream) for each, and what it has to wait for. A pure function of a plan.

Waves would join all branches after every step. Here a lane follows one chain of steps, and waits for others only where
a step needs what they made, or writes where they still read: buffers share memory, so that is told from places in the
arena and not from values alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_fast.inference.execution.arena import ArenaLayout
from hrnet_fast.inference.plan import CallStep, ExportStep, Plan, View, reads, slot_reads, writes

MAX_LANES = 4  # as many as branches


@dataclass(frozen=True)
class Schedule:
    """Units (steps, or groups of them) on lanes. Units of one lane run in order; lane 0 begins and ends.

    Attributes:
        lanes: of each unit.
        waits: units of other lanes that each one waits for, none that it could not but run behind anyway.
        signals: units that others wait for.
        joins: the last unit of every other lane, for which lane 0 waits at the end.
    """

    lanes: tuple[int, ...]
    waits: tuple[tuple[int, ...], ...]
    signals: frozenset[int]
    joins: tuple[int, ...]

    @property
    def count(self) -> int:
        return max(self.lanes, default=0) + 1


def schedule(plan: Plan, layout: ArenaLayout, units: Sequence[Sequence[int]], lanes: int = MAX_LANES) -> Schedule:
    """Return lanes and waits of `units`, which are steps of `plan` by number, in an order in which they can run.

    Args:
        layout: where buffers lie.
        lanes: how many there may be.
    """
    before = dependencies(plan, layout, units)
    weight = _weights(plan, units, before)
    lane_of: list[int] = []
    tails: list[int] = []  # the last unit of each lane
    known: list[list[int]] = []  # of each unit: the last one of each lane that is over when it ends
    waits: list[tuple[int, ...]] = []
    for u, needs in enumerate(before):
        lane = _lane(needs, tails, known, weight, lanes)
        if lane == len(tails):
            tails.append(-1)
        over = [-1] * lanes
        if tails[lane] >= 0:
            over = list(known[tails[lane]])
        mine: list[int] = []
        # The latest first: what it waited for itself needs no wait of ours.
        for need in sorted(needs, reverse=True):
            if need > over[lane_of[need]]:
                mine.append(need)
                over = [max(a, b) for a, b in zip(over, known[need], strict=True)]
        over[lane] = u
        tails[lane] = u
        lane_of.append(lane)
        known.append(over)
        waits.append(tuple(sorted(need for need in mine if lane_of[need] != lane)))
    joins = tuple(tails[1:])
    signals = frozenset([*(need for mine in waits for need in mine), *joins])
    return Schedule(tuple(lane_of), tuple(waits), signals, joins)


def dependencies(plan: Plan, layout: ArenaLayout, units: Sequence[Sequence[int]]) -> list[set[int]]:
    """Return the units that each one has to run behind: reads after writes, writes after reads and after writes."""
    touched = [_Touched.of(plan, unit) for unit in units]
    before: list[set[int]] = []
    for u, this in enumerate(touched):
        needs = {
            v
            for v in range(u)
            if touched[v].slots_out & this.slots_in
            or _meet(plan, layout, touched[v].writes, this.reads)
            or _meet(plan, layout, touched[v].reads, this.writes)
            or _meet(plan, layout, touched[v].writes, this.writes)
        }
        before.append(needs)
    return before


@dataclass(frozen=True)
class _Touched:
    """What a unit reads and writes."""

    reads: tuple[View, ...]
    writes: tuple[View, ...]
    slots_in: frozenset[int]
    slots_out: frozenset[int]

    @classmethod
    def of(cls, plan: Plan, unit: Sequence[int]) -> _Touched:
        steps = [plan.steps[i] for i in unit]
        return cls(
            tuple(view for s in steps for view in reads(s)),
            tuple(view for s in steps if (view := writes(s)) is not None),
            frozenset(slot for s in steps for slot in slot_reads(s)),
            frozenset(s.slot for s in steps if isinstance(s, (ExportStep, CallStep))),
        )


def _meet(plan: Plan, layout: ArenaLayout, these: Sequence[View], those: Sequence[View]) -> bool:
    """Whether any two of the views have bytes in common."""
    return any(_overlap(plan, layout, a, b) for a in these for b in those)


def _overlap(plan: Plan, layout: ArenaLayout, a: View, b: View) -> bool:
    if a.buffer == b.buffer:
        return a.offset < b.offset + b.channels and b.offset < a.offset + a.channels
    first, second = layout.offsets[a.buffer], layout.offsets[b.buffer]
    if first is None or second is None:
        return False  # a tensor of its own
    # Channels alternate in memory, so a part of a buffer reaches over all of it.
    size = plan.dtype.itemsize
    ends = first + plan.buffers[a.buffer].elements * size, second + plan.buffers[b.buffer].elements * size
    return first < ends[1] and second < ends[0]


def _weights(plan: Plan, units: Sequence[Sequence[int]], before: Sequence[set[int]]) -> list[int]:
    """The most work on any way to each unit, in operations of a device that moves a byte in the time of 100."""
    found: list[int] = []
    for unit, needs in zip(units, before, strict=True):
        steps = [plan.steps[i] for i in unit]
        own = sum(max(plan.step_flops(s), 100 * plan.step_bytes(s)) for s in steps)
        found.append(own + max((found[v] for v in needs), default=0))
    return found


def _lane(needs: set[int], tails: list[int], known: list[list[int]], weight: list[int], lanes: int) -> int:
    """The lane to go on with: behind the heaviest need, else where it waits for nothing new, else a new one."""
    behind = [lane for lane, tail in enumerate(tails) if tail in needs]
    if behind:
        return max(behind, key=lambda lane: weight[tails[lane]])
    # A lane whose last unit some need has waited for is free at no cost.
    free = [lane for lane, tail in enumerate(tails) if any(known[v][lane] >= tail for v in needs)]
    if free:
        return min(free, key=lambda lane: weight[tails[lane]])
    return len(tails) if len(tails) < lanes else min(range(lanes), key=lambda lane: weight[tails[lane]])
