"""Formats figures of records, and chooses the contenders that a figure is compared with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.reports.records import Record

# First words of the names of contenders that are this package.
OURS = ("engine", "hrnet_fast", "fused")
BASELINE = "eager"
_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "byte": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "FLOP/s": ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s")),
    "byte/s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s")),
    "launch": ((1.0, ""),),
    "ratio": ((1.0, "x"),),
}


@dataclass(frozen=True)
class DisplayUnit:
    """A unit that figures are shown in: `factor` of the record's own unit."""

    factor: float
    name: str

    def text(self, value: float) -> str:
        """Return a figure without its unit; a number of things, which has none, with all digits."""
        return three_digits(value / self.factor) if self.name else f"{value:.0f}"

    def full(self, value: float) -> str:
        """Return a figure with its unit."""
        return f"{self.text(value)}{'' if self.name == 'x' else ' '}{self.name}".rstrip()


def scale_of(values: Iterable[float], unit: str) -> DisplayUnit:
    """Choose one unit for figures of one table or axis: the largest in which the smallest figure is at least 1."""
    smallest = min((v for v in values if v > 0), default=0.0)
    found = next((s for s in _SCALES[unit] if smallest >= s[0]), _SCALES[unit][-1])
    return DisplayUnit(*found)


def three_digits(value: float) -> str:
    """Return a figure with three significant digits, without an exponent from 1e-4 on."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.9995 or size == 0 else f"{value:#.3g}"


def ratio(value: float | None, other: float | None) -> str:
    """Return `value` / `other` as text, empty where there is none."""
    if value is None or other is None or other <= 0:
        return ""
    return f"{three_digits(value / other)}x"


def reason(record: Record) -> str:
    """Return why a record has no value: its status and note."""
    if record.status == "wrong" and record.error is not None and record.limit is not None:
        sign = ">" if record.error > record.limit else "against"  # NaN is not larger than the limit
        return f"wrong: error {record.error:.1e} {sign} limit {record.limit:.1e}"
    note = plain(record.note)
    return f"{record.status}: {note}" if note else record.status


def plain(text: str) -> str:
    """Return a text as one line of at most 200 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:197].rstrip() + "..."


def markdown_text(text: str) -> str:
    """Return a text as Markdown for one line or table cell, with the characters escaped that have a meaning there."""
    line = " ".join(text.split()).replace("&", "&amp;")
    for sign in "<|*`\\":
        line = line.replace(sign, f"&#{ord(sign)};")
    return line


def is_ours(contender: str) -> bool:
    """Whether a contender is this package, by the first word of its name."""
    return re.split(r"[^\w]", contender, maxsplit=1)[0] in OURS


def baseline_of(group: Sequence[Record]) -> Record:
    """Return the baseline: 'eager', else what begins with that word, else the first contender."""
    named = [r for r in group if r.contender == BASELINE]
    near = [r for r in group if re.split(r"[^\w]", r.contender, maxsplit=1)[0] == BASELINE]
    return (named or near or list(group))[0]


def ours_of(group: Sequence[Record]) -> Record | None:
    """Return the first measured record of this package, or None."""
    return next((r for r in group if is_ours(r.contender) and r.value is not None), None)


def larger_is_better(unit: str) -> bool:
    """Whether figures of a unit are rates."""
    return unit.endswith("/s")


def slug(text: str) -> str:
    """Return a text as part of a file name: lower case, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
