"""Buffer assignment: lifetimes of buffers in waves, and buffers that a step overwrites in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hrnet_fast.inference.steps import Buffer, ConvStep, Step, SumStep, View, reads, with_views, writes

Size = tuple[int, int, int, int]  # n, channels, height, width


@dataclass
class _Lifetime:
    """First and last wave of a buffer, the steps of the last wave that use it, and whether every view is all of it."""

    first: int
    last: int
    last_steps: list[int]
    whole: bool


def share_buffers(
    steps: Sequence[Step], waves: Sequence[Sequence[int]], sizes: Sequence[Size]
) -> tuple[list[Step], tuple[Buffer, ...]]:
    """Let a step write its result over a map that it adds for the last time, and number the buffers that are left.

    Args:
        steps: with views of one buffer for each place.
        waves: as :func:`~hrnet_fast.inference.planning.waves.schedule_waves` returns them.
        sizes: of the buffers.

    Post: a buffer that is written in place is touched in that wave by that step alone.
    """
    lives = _lifetimes(steps, waves, sizes)
    replaced: dict[int, int] = {}
    for k, wave in enumerate(waves):
        for i in wave:
            added, out = _added_map(steps[i]), writes(steps[i])
            if added is None or out is None or out.buffer in replaced:
                continue
            old = replaced.get(added.buffer, added.buffer)
            before, after = lives[old], lives[out.buffer]
            if before.last == k and before.last_steps == [i] and before.whole and after.whole:
                replaced[out.buffer] = old
                before.last, before.last_steps = after.last, after.last_steps
    kept = [b for b in lives if b not in replaced]
    number = {b: n for n, b in enumerate(kept)}

    def renumbered(view: View) -> View:
        return replace(view, buffer=number[replaced.get(view.buffer, view.buffer)])

    buffers = tuple(Buffer(*sizes[b], lives[b].first, lives[b].last) for b in kept)
    return [with_views(step, renumbered) for step in steps], buffers


def _lifetimes(steps: Sequence[Step], waves: Sequence[Sequence[int]], sizes: Sequence[Size]) -> dict[int, _Lifetime]:
    """Return lifetimes by buffer, in the order of first use."""
    lives: dict[int, _Lifetime] = {}
    for k, wave in enumerate(waves):
        for i in wave:
            for view in [*reads(steps[i]), writes(steps[i])]:
                if view is None:
                    continue
                life = lives.setdefault(view.buffer, _Lifetime(k, k, [], True))
                life.whole = life.whole and view.channels == sizes[view.buffer][1]
                life.last_steps = [*(life.last_steps if life.last == k else []), i]
                life.last = k
    return lives


def _added_map(step: Step) -> View | None:
    """Return the map that a step adds element by element, and reads for nothing else."""
    if isinstance(step, ConvStep) and step.residual is not None and step.residual.buffer != step.source.buffer:
        return step.residual
    if isinstance(step, SumStep):
        same = [t.source for t in step.terms if t.mode == "identity"]
        return same[0] if same and sum(t.source.buffer == same[0].buffer for t in step.terms) == 1 else None
    return None
