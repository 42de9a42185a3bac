"""Offsets of buffers in one arena: buffers with disjoint lifetimes share memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True)
class Interval:
    """`size` bytes, live from wave `first` to wave `last`, both included."""

    size: int
    first: int
    last: int


def assign_offsets(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Return every interval's offset in bytes, and the arena's size.

    Greedy by size: each interval, largest first, gets the lowest offset that is free during its lifetime.
    """
    offsets = [0] * len(intervals)
    placed: list[int] = []
    total = 0
    for k in sorted(range(len(intervals)), key=lambda k: (-intervals[k].size, intervals[k].first)):
        this = intervals[k]
        size = -(-this.size // ALIGNMENT) * ALIGNMENT
        busy = sorted(
            (offsets[j], offsets[j] + intervals[j].size)
            for j in placed
            if intervals[j].first <= this.last and this.first <= intervals[j].last
        )
        at = 0
        for begin, end in busy:
            if at + size <= begin:
                break
            at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[k] = at
        placed.append(k)
        total = max(total, at + size)
    return offsets, total
