"""The stream schedule: which launch group runs on which stream, and which groups of other streams it waits for.

A stream follows a chain of groups. It waits for another stream only where a group reads what that one wrote, or writes
memory that it reads or writes. Buffers share memory, so hazards are found by places in the arena. The schedule is a
pure function of plan and layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_fast.inference.execution.arena import ArenaLayout
from hrnet_fast.inference.execution.launch_groups import LaunchGroup
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import View

MAX_STREAMS = 4  # the number of branches


@dataclass(frozen=True)
class StreamSchedule:
    """Launch groups on streams. Groups of one stream run in order; stream 0 begins and ends.

    Attributes:
        streams: of each group.
        waits: groups of other streams that each group waits for, without those that are implied by other waits.
        signals: groups that others wait for.
        joins: the last group of every other stream, for which stream 0 waits at the end.
    """

    streams: tuple[int, ...]
    waits: tuple[tuple[int, ...], ...]
    signals: frozenset[int]
    joins: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of streams."""
        return max(self.streams, default=0) + 1


def schedule(
    plan: Plan, layout: ArenaLayout, groups: Sequence[LaunchGroup], max_streams: int = MAX_STREAMS
) -> StreamSchedule:
    """Return streams and waits of `groups`, which are in an order in which they can run."""
    before = dependencies(plan, layout, groups)
    path_cost = _path_costs(plan, groups, before)
    stream_of: list[int] = []
    tails: list[int] = []  # the last group of each stream
    finished: list[list[int]] = []  # for each group: the last group of each stream that has finished when it ends
    waits: list[tuple[int, ...]] = []
    for g, needs in enumerate(before):
        stream = _choose_stream(needs, tails, finished, path_cost, max_streams)
        if stream == len(tails):
            tails.append(-1)
        over = list(finished[tails[stream]]) if tails[stream] >= 0 else [-1] * max_streams
        own: list[int] = []
        # The latest first: it implies waits for whatever it waited for itself.
        for need in sorted(needs, reverse=True):
            if need > over[stream_of[need]]:
                own.append(need)
                over = [max(a, b) for a, b in zip(over, finished[need], strict=True)]
        over[stream] = g
        tails[stream] = g
        stream_of.append(stream)
        finished.append(over)
        waits.append(tuple(sorted(need for need in own if stream_of[need] != stream)))
    joins = tuple(tails[1:])
    signals = frozenset([*(need for own in waits for need in own), *joins])
    return StreamSchedule(tuple(stream_of), tuple(waits), signals, joins)


def dependencies(plan: Plan, layout: ArenaLayout, groups: Sequence[LaunchGroup]) -> list[set[int]]:
    """Return the groups that each group has to run after: reads after writes, writes after reads and writes."""
    return [
        {
            k
            for k, earlier in enumerate(groups[:g])
            if earlier.slot_writes & group.slot_reads
            or _overlap(plan, layout, earlier.writes, group.reads)
            or _overlap(plan, layout, earlier.reads, group.writes)
            or _overlap(plan, layout, earlier.writes, group.writes)
        }
        for g, group in enumerate(groups)
    ]


def _overlap(plan: Plan, layout: ArenaLayout, these: Sequence[View], those: Sequence[View]) -> bool:
    """Whether any two of the views share memory."""
    return any(_share_memory(plan, layout, a, b) for a in these for b in those)


def _share_memory(plan: Plan, layout: ArenaLayout, a: View, b: View) -> bool:
    if a.buffer == b.buffer:
        return a.overlaps(b)
    first, second = layout.offsets[a.buffer], layout.offsets[b.buffer]
    if first is None or second is None:
        return False  # an adopted tensor has memory of its own
    # Channels-last: a view of some channels reaches over all of its buffer.
    size = plan.dtype.itemsize
    ends = first + plan.buffers[a.buffer].elements * size, second + plan.buffers[b.buffer].elements * size
    return first < ends[1] and second < ends[0]


def _path_costs(plan: Plan, groups: Sequence[LaunchGroup], before: Sequence[set[int]]) -> list[int]:
    """Return the cost of the most expensive path to each group, where moving a byte costs as much as 100 FLOPs."""
    found: list[int] = []
    for group, needs in zip(groups, before, strict=True):
        steps = [plan.steps[i] for i in group.steps]
        own = sum(max(plan.step_flops(s), 100 * plan.step_bytes(s)) for s in steps)
        found.append(own + max((found[k] for k in needs), default=0))
    return found


def _choose_stream(
    needs: set[int], tails: list[int], finished: list[list[int]], path_cost: list[int], max_streams: int
) -> int:
    """Return the stream of the most expensive need, else one that needs no new wait, else a new one."""
    following = [stream for stream, tail in enumerate(tails) if tail in needs]
    if following:
        return max(following, key=lambda stream: path_cost[tails[stream]])
    # A stream whose last group some need has waited for is free without a new wait.
    free = [stream for stream, tail in enumerate(tails) if any(finished[k][stream] >= tail for k in needs)]
    if free:
        return min(free, key=lambda stream: path_cost[tails[stream]])
    if len(tails) < max_streams:
        return len(tails)
    return min(range(max_streams), key=lambda stream: path_cost[tails[stream]])
