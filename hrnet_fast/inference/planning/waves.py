"""Scheduling: steps are ordered into waves of steps that do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hrnet_fast.inference.steps import CallStep, ExportStep, Step, View, groupable, reads, slot_reads, writes

# Of the steps that are ready, those of the lowest rank make the next wave. Parallel 3x3 convolutions of the branches
# wait for everything else, so that they meet in one wave; calls interrupt the executor and come last.
_RANKS: tuple[Callable[[Step], bool], ...] = (
    lambda step: not groupable(step) and not isinstance(step, CallStep),
    groupable,
    lambda step: isinstance(step, CallStep),
)


def schedule_waves(steps: Sequence[Step]) -> list[list[int]]:
    """Return waves of steps by number.

    Pre: no buffer is shared by values that live at different times.
    Post: every step is in one wave, behind the waves of all steps that it depends on.
    """
    pending = _dependencies(steps)
    waves: list[list[int]] = []
    while pending:
        ready = [i for i, needs in pending.items() if not needs]
        wave = next(found for rank in _RANKS if (found := [i for i in ready if rank(steps[i])]))
        waves.append(wave)
        for i in wave:
            del pending[i]
        for needs in pending.values():
            needs.difference_update(wave)
    return waves


def _dependencies(steps: Sequence[Step]) -> dict[int, set[int]]:
    """Return the steps that each step has to wait for: the writers of what it reads."""
    writers: dict[int, list[tuple[View, int]]] = {}
    slots: dict[int, int] = {}
    for i, step in enumerate(steps):
        view = writes(step)
        if view is not None:
            writers.setdefault(view.buffer, []).append((view, i))
        if isinstance(step, (ExportStep, CallStep)):
            slots[step.slot] = i
    needs: dict[int, set[int]] = {}
    for i, step in enumerate(steps):
        needs[i] = {slots[s] for s in slot_reads(step) if s in slots}
        for view in reads(step):
            needs[i] |= {j for other, j in writers[view.buffer] if other.overlaps(view)}
    return needs
