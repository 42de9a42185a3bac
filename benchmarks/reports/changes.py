"""Compares two result files: finds what got slower, faster, larger or wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reports.figures import larger_is_better
from benchmarks.reports.records import Record, Run

EXACT = ("byte", "launch")  # units whose figures have no spread
# Worst first. The first four are what a comparison fails for.
KINDS = (
    "wrong",  # outside of the error budget now, and not before
    "lost",  # measured before; failed or out of time now
    "slower",
    "larger",
    "unavailable",  # measured before, cannot run now
    "other",  # another reason for no figure, or another unit
    "repaired",  # no figure before, one now
    "faster",
    "smaller",
    "only before",
    "only after",
)
FAILING = KINDS[:4]
# Smaller differences of ratios, which are of host time, are not reported.
RATIO_TOLERANCE = 0.1
# Relative spread that is assumed for a time of one or two rounds or without quartiles.
UNKNOWN_SPREAD = 0.1


@dataclass(frozen=True)
class Change:
    """One contender in one case whose two records differ.

    Attributes:
        kind: one of KINDS.
        before, after: the records; None on the side that has none.
        ratio: after / before, where both were measured in one unit and before is not zero.
        noise: the relative difference of medians that the spread of both explains.
    """

    kind: str
    before: Record | None
    after: Record | None
    ratio: float | None = None
    noise: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """`Record.key` of either."""
        record = self.after or self.before
        assert record is not None
        return record.key

    @property
    def fails(self) -> bool:
        """Whether it is a change for the worse."""
        return self.kind in FAILING


def find_changes(before: Run, after: Run, threshold: float = 0.05) -> list[Change]:
    """Return the changes from one run to another, worst first.

    Figures are matched by `Record.key`; of repeated records the last counts. Two medians count as different only if

    - the larger is more than (1 + threshold) times the smaller, and
    - their difference exceeds the root sum of squares of both runs' spreads, and
    - their difference exceeds the sum of the two facing half-ranges, so that overlapping interquartile ranges never
      count.

    A record's spread is the larger of its interquartile range and its suite's median relative range, since quartiles of
    few rounds may lie close together by chance. It is widened by 1 + 8 / rounds. The spread is not divided by the root
    of the rounds, as the error of a median would be: two runs also differ by the temperature and load of the machine,
    which no number of rounds within one run shows. In simulations (3 rounds and more, 5 % standard deviation, normal
    and skewed) about one of 100000 equal records was reported as changed.

    A time of fewer than three rounds or without quartiles is assumed to have a range of 10 %; bytes have none unless
    given. Of launches every difference counts; of ratios none up to `RATIO_TOLERANCE`. Set-up times are single samples
    and are not compared, nor are errors within their limit.
    """
    old, new = ({r.key: r for r in run.records} for run in (before, after))
    usual = _usual_spread(before), _usual_spread(after)
    changes = [_change(old.get(key), new.get(key), threshold, usual) for key in dict.fromkeys((*old, *new))]
    return sorted((c for c in changes if c is not None), key=_badness)


def count_compared(before: Run, after: Run) -> int:
    """Return how many figures both runs have."""
    old = {r.key for r in before.records if r.value is not None}
    return len(old & {r.key for r in after.records if r.value is not None})


def differences(before: Run, after: Run) -> list[str]:
    """Return how the runs' machines differ, one text each; with any, times say little about the software."""
    pairs = [(k, before.machine.get(k), after.machine.get(k)) for k in ("device", "kind", "threads")]
    pairs.append(("torch", before.versions.get("torch"), after.versions.get("torch")))
    return [f"{name} {_known(old)} before, {_known(new)} after" for name, old, new in pairs if old != new]


def failing(changes: Sequence[Change]) -> bool:
    """Whether something got slower, larger or wrong."""
    return any(c.fails for c in changes)


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


def _badness(change: Change) -> tuple[int, float]:
    factor = change.ratio if change.ratio is not None and change.ratio > 0 else 1.0
    return KINDS.index(change.kind), -abs(math.log(factor))


def _usual_spread(run: Run) -> dict[str, float]:
    """Return each suite's median interquartile range, relative to the figure."""
    spreads: dict[str, list[float]] = {}
    for record in run.records:
        if record.value and record.unit not in EXACT:
            low, high = _range(record, record.value)
            spreads.setdefault(record.suite, []).append((high - low) / record.value)
    return {suite: statistics.median(found) for suite, found in spreads.items()}


def _change(
    old: Record | None, new: Record | None, threshold: float, usual: tuple[dict[str, float], dict[str, float]]
) -> Change | None:
    if new is None:
        return Change("only before", old, None)
    if new.status == "wrong" and (old is None or old.status != "wrong"):
        return Change("wrong", old, new)
    if old is None:
        return Change("only after", None, new)
    if old.value is not None and new.value is not None:
        noise = _noise((old, new), (old.value, new.value), usual)
        return _moved(old, new, (old.value, new.value), threshold, noise)
    if old.status == new.status:
        return None
    if old.value is not None:
        return Change("unavailable" if new.status == "unavailable" else "lost", old, new)
    return Change("repaired" if new.value is not None else "other", old, new)


def _moved(old: Record, new: Record, values: tuple[float, float], threshold: float, noise: float) -> Change | None:
    if old.unit != new.unit:
        return Change("other", old, new)
    was, now = values
    if old.unit == "launch":
        threshold = 0.0
    elif old.unit == "ratio":
        threshold = max(threshold, RATIO_TOLERANCE)
    # Not as a quotient: bytes may be none at all.
    if max(values) <= min(values) * (1 + threshold) or abs(now - was) <= noise:
        return None
    if old.unit in EXACT:
        kind = "larger" if now > was else "smaller"
    else:
        kind = "slower" if (now > was) != larger_is_better(old.unit) else "faster"
    return Change(kind, old, new, now / was if was else None, noise / was if was else None)


def _noise(
    records: tuple[Record, Record], values: tuple[float, float], usual: tuple[dict[str, float], dict[str, float]]
) -> float:
    ranges = [_range(record, value) for record, value in zip(records, values, strict=True)]
    spreads = []
    for record, value, (low, high), suites in zip(records, values, ranges, usual, strict=True):
        least = 0.0 if record.unit in EXACT else suites.get(record.suite, 0.0) * value
        spreads.append(max(high - low, least) * (1 + 8 / max(record.rounds, 3)))
    small, large = (0, 1) if values[0] <= values[1] else (1, 0)
    facing = (ranges[small][1] - values[small]) + (values[large] - ranges[large][0])
    return max(math.hypot(*spreads), facing)


def _range(record: Record, value: float) -> tuple[float, float]:
    found = record.interquartile_range
    if record.unit in EXACT:
        return found or (value, value)
    if found is None or record.rounds < 3:
        half = value * UNKNOWN_SPREAD / 2
        found = found or (value, value)
        return min(found[0], value - half), max(found[1], value + half)
    return found
