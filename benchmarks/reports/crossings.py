"""From which batch or resolution on a contender is faster than eager execution: crossing points of scaling suites."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.reports.figures import BASELINE, is_ours, ratio, three_digits
from benchmarks.reports.records import Record, by_case
from benchmarks.reports.tables import Cells, Table

QUANTITY = "training step"
COLUMNS = ("dtype", "contender", "faster than eager at", "eager / it, smallest>", "eager / it, largest>")
NOTE = (
    "Eager is the faster of its two memory layouts at each point. Between measured points the ratio is interpolated "
    "over the logarithm of the batch or resolution."
)
Points = list[tuple[float, float]]


def speeds(suite: str, records: Sequence[Record], quantity: str = QUANTITY) -> dict[tuple[str, str], Points]:
    """Return, by (dtype, contender), points of the scaled parameter and the speed over the faster eager layout.

    The suite's last word names the parameter, as in :func:`benchmarks.reports.plots.scaling_lines`. Contenders whose
    names begin with "eager" are left out, and so are cases without one.
    """
    found: dict[tuple[str, str], Points] = {}
    measured = [r for r in records if r.suite == suite and r.quantity == quantity and r.value]
    for group in by_case(measured).values():
        times = {r.contender: r.value for r in group if r.value}
        eager = [value for name, value in times.items() if name.startswith(BASELINE)]
        x = group[0].params.get(suite.rsplit(maxsplit=1)[-1])
        if not eager or not isinstance(x, int | float):
            continue
        for name, value in times.items():
            if not name.startswith(BASELINE):
                found.setdefault((group[0].dtype, name), []).append((float(x), min(eager) / value))
    return {key: sorted(points) for key, points in found.items()}


def crossings(points: Points) -> list[float]:
    """Return where the line through `points` crosses 1, by linear interpolation over the logarithm of x."""
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if (y0 > 1) != (y1 > 1):
            found.append(x0 * (x1 / x0) ** ((1 - y0) / (y1 - y0)))
    return found


def where_faster(points: Points) -> str:
    """Say in words at which values of the scaled parameter the line is above 1."""
    ends = [three_digits(x) if x < 9.995 else f"{x:.0f}" for x in crossings(points)]
    first, last = points[0][1] > 1, points[-1][1] > 1
    if not ends:
        return "all measured" if first else "none measured"
    # Intervals alternate; the outermost ones end where the measurement does.
    bounds = ["", *ends] if first else ends
    if last:
        bounds.append("")
    parts = [
        f"up to {high}" if not low else f"from {low}" if not high else f"{low} to {high}"
        for low, high in zip(bounds[::2], bounds[1::2], strict=True)
    ]
    return ", ".join(parts)


def crossing_table(suite: str, records: Sequence[Record]) -> Table | None:
    """Return one row per dtype and contender of a scaling suite; None where it has no training steps beside eager's."""
    rows: list[Cells] = []
    for (dtype, contender), points in speeds(suite, records).items():
        ends = (ratio(points[i][1], 1.0) for i in (0, -1))
        rows.append((dtype, contender, where_faster(points), *ends))
    if not suite.startswith("scaling") or not rows:
        return None
    name = suite.rsplit(maxsplit=1)[-1]
    marks = tuple("ours" if is_ours(row[1]) else "" for row in rows)
    return Table(f"Crossing points by {name}", COLUMNS, tuple(rows), marks, keys=1, note=NOTE)
