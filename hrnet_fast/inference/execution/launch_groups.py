"""Launch groups: steps of a plan that one launch computes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hrnet_fast.inference.execution.sum_fusion import FusedSum, SumFusion
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import CallStep, ConvStep, ExportStep, View, groupable, reads, slot_reads, writes

MAX_BRANCHES = 8  # of one grouped_conv3x3


@dataclass(frozen=True)
class LaunchGroup:
    """Steps by number, and the data that their launch reads and writes.

    Attributes:
        steps: one, several parallel 3x3 convolutions, or a fused sum behind its 1x1 convolutions.
        fused: the fused sum, or None.
    """

    steps: tuple[int, ...]
    reads: tuple[View, ...]
    writes: tuple[View, ...]
    slot_reads: frozenset[int] = frozenset()
    slot_writes: frozenset[int] = frozenset()
    fused: FusedSum | None = None

    @property
    def is_grouped_conv(self) -> bool:
        """Whether it is one ``grouped_conv3x3``."""
        return len(self.steps) > 1 and self.fused is None


def convolution(plan: Plan, number: int) -> ConvStep:
    """Return a convolution step by number."""
    step = plan.steps[number]
    assert isinstance(step, ConvStep)
    return step


def launch_groups(plan: Plan, grouped: bool = False, fusions: Collection[SumFusion] = ()) -> list[LaunchGroup]:
    """Return all steps in launch groups, in an order in which they can run.

    Args:
        plan: the plan.
        grouped: whether parallel 3x3 convolutions of a wave with equal epilogues are one launch.
        fusions: sums that are launched together with their 1x1 convolutions.
    """
    fused = {s.step: s for fusion in fusions for s in fusion.sums}
    skipped = {conv for fusion in fusions for conv in fusion.convs}
    attributed: set[int] = set()  # each convolution counts as a step of the first sum that reads it
    groups: list[LaunchGroup] = []
    for wave in plan.waves:
        numbers = [i for i in wave if i not in skipped]
        for steps in _parallel_convs(plan, numbers) if grouped else [[i] for i in numbers]:
            if steps[0] in fused:
                groups.append(_fused_group(plan, fused[steps[0]], attributed))
                attributed.update(groups[-1].steps)
            else:
                groups.append(_plain_group(plan, steps))
    return groups


def _plain_group(plan: Plan, numbers: Sequence[int]) -> LaunchGroup:
    steps = [plan.steps[i] for i in numbers]
    return LaunchGroup(
        tuple(numbers),
        tuple(view for s in steps for view in reads(s)),
        tuple(view for s in steps if (view := writes(s)) is not None),
        frozenset(slot for s in steps for slot in slot_reads(s)),
        frozenset(s.slot for s in steps if isinstance(s, (ExportStep, CallStep))),
    )


def _fused_group(plan: Plan, fused: FusedSum, attributed: Collection[int]) -> LaunchGroup:
    convs = dict.fromkeys(t.conv for t in fused.terms if t.conv is not None and t.conv not in attributed)
    out = writes(plan.steps[fused.step])
    assert out is not None
    return LaunchGroup((*convs, fused.step), tuple(t.source for t in fused.terms), (out,), fused=fused)


def _parallel_convs(plan: Plan, wave: Sequence[int]) -> list[list[int]]:
    """Group 3x3 convolutions of a wave by ReLU, at the place of the first of each group."""
    groups: dict[tuple[bool, int], list[int]] = {}
    counts = {True: 0, False: 0}
    order: list[list[int]] = []
    for i in wave:
        step = plan.steps[i]
        if not isinstance(step, ConvStep) or not groupable(step) or step.relu not in ((0, 0), (0, step.out.channels)):
            order.append([i])
            continue
        relu = step.relu[1] > 0
        key = (relu, counts[relu] // MAX_BRANCHES)
        counts[relu] += 1
        if key not in groups:
            groups[key] = []
            order.append(groups[key])
        groups[key].append(i)
    return order


def last_groups(groups: Sequence[LaunchGroup]) -> dict[int, list[int]]:
    """Return buffers by the number of the last group that reads or writes them."""
    last = {view.buffer: k for k, group in enumerate(groups) for view in (*group.reads, *group.writes)}
    found: dict[int, list[int]] = {}
    for buffer, k in last.items():
        found.setdefault(k, []).append(buffer)
    return found


def buffer_lifetimes(plan: Plan, groups: Sequence[LaunchGroup]) -> dict[int, tuple[int, int]]:
    """Return the first and last wave in which groups read or write each buffer."""
    wave_of = {i: k for k, wave in enumerate(plan.waves) for i in wave}
    lives: dict[int, tuple[int, int]] = {}
    for group in groups:
        wave = wave_of[group.steps[-1]]
        for view in (*group.reads, *group.writes):
            first, last = lives.get(view.buffer, (wave, wave))
            lives[view.buffer] = (min(first, wave), max(last, wave))
    return lives
