"""Draws suites as PNG images: bars by case and contender, or lines for suites that scale a parameter."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reports.figures import baseline_of, is_ours, scale_of, slug
from benchmarks.reports.records import Record, by_case

_OURS = ("#d55e00", "#f2a065", "#8f3f00")
_BASELINE = "#8a8a8a"
# Distinct for colour-blind readers.
_OTHERS = ("#0072b2", "#009e73", "#56b4e9", "#cc79a7", "#b59b00", "#5a4fa2", "#333333")
_GROUPS = 20  # of bars in one image
_SCALING = "scaling"


@dataclass(frozen=True)
class Plot:
    """An image: its file name without suffix, its title and its PNG bytes."""

    name: str
    title: str
    png: bytes


def suite_plots(suite: str, records: Sequence[Record]) -> list[Plot]:
    """Return a suite's images: one per quantity and 20 cases."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # a dollar sign in a name starts no formula
        return _suite_plots(suite, records)


def _suite_plots(suite: str, records: Sequence[Record]) -> list[Plot]:
    plots: list[Plot] = []
    colours = colours_of(records)
    quantities: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        quantities.setdefault((record.quantity, record.unit), []).append(record)
    for (quantity, unit), chosen in quantities.items():
        if not any(r.value is not None for r in chosen):
            continue
        title = ": ".join(dict.fromkeys((suite, quantity)))
        # The unit is part of the name where a quantity has two.
        name = slug(title if sum(q == quantity for q, _ in quantities) == 1 else f"{title} {unit}")
        lines = scaling_lines(suite, chosen)
        if lines:
            plots.append(Plot(name, title, _draw_lines(title, suite.rsplit(maxsplit=1)[-1], lines, colours)))
            continue
        groups = [group for group in by_case(chosen).values() if any(r.value is not None for r in group)]
        for start in range(0, len(groups), _GROUPS):
            part = f"-{start // _GROUPS + 1}" if len(groups) > _GROUPS else ""
            png = _draw_bars(title, groups[start : start + _GROUPS], colours)
            plots.append(Plot(name + part, title, png))
    return plots


def colours_of(records: Sequence[Record]) -> dict[str, str]:
    """Return a colour per contender: grey for the baseline, orange for this package."""
    names = list(dict.fromkeys(r.contender for r in records))
    base = baseline_of(records).contender
    ours = [n for n in names if is_ours(n) and n != base]
    others = [n for n in names if n not in ours and n != base]
    colours = {base: _BASELINE}
    colours |= {name: _OURS[i % len(_OURS)] for i, name in enumerate(ours)}
    return colours | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}


def scaling_lines(suite: str, records: Sequence[Record]) -> dict[str, dict[str, list[tuple[float, Record]]]]:
    """Return panels (by model and dtype) of lines (by contender) of points, sorted by the scaled parameter.

    The suite's last word names the parameter. Empty where the suite scales none, or a record lacks its value.
    """
    if not suite.startswith(_SCALING):
        return {}
    panels: dict[str, dict[str, list[tuple[float, Record]]]] = {}
    for record in records:
        x = record.params.get(suite.rsplit(maxsplit=1)[-1])
        if not isinstance(x, int | float) or isinstance(x, bool) or x <= 0:
            return {}
        panel = " ".join(str(p) for p in (record.params.get("model", ""), record.dtype) if p)
        points = panels.setdefault(panel, {}).setdefault(record.contender, [])
        if record.value:  # a logarithmic axis has no 0
            points.append((float(x), record))
    for lines in panels.values():
        for points in lines.values():
            points.sort(key=lambda point: point[0])
    return panels if any(points for lines in panels.values() for points in lines.values()) else {}


def _draw_bars(title: str, groups: Sequence[Sequence[Record]], colours: dict[str, str]) -> bytes:
    from matplotlib.figure import Figure  # pyplot would need a screen and share state

    bars = sum(len(group) for group in groups)
    figure = Figure(figsize=(9, 1.3 + 0.2 * bars + 0.16 * len(groups)), layout="constrained")
    axis = figure.subplots()
    scale = scale_of([r.value for g in groups for r in g if r.value is not None], groups[0][0].unit)
    y = 0.0
    ticks: list[tuple[float, str]] = []
    dtypes = {group[0].dtype for group in groups}
    if len(dtypes) == 1:
        title = f"{title}, {groups[0][0].dtype}"
    for group in groups:
        label = f"{group[0].case}, {group[0].dtype}" if len(dtypes) > 1 else group[0].case
        ticks.append((y + (len(group) - 1) / 2, label))
        for record in group:
            _draw_bar(axis, y, record, scale.factor, scale.text(record.value or 0), colours[record.contender])
            y += 1
        y += 0.8
    values = [r.value for g in groups for r in g if r.value]
    if values and max(values) > 30 * min(values):
        axis.set_xscale("log")
    axis.margins(x=0.1)
    axis.set_ylim(y - 0.4, -1.0)  # the first case at the top
    axis.set_yticks([at for at, _ in ticks], [label for _, label in ticks], fontsize=8)
    axis.set_xlabel(scale.name + (" (logarithmic)" if axis.get_xscale() == "log" else ""))
    _finish(figure, [axis], title, {r.contender: colours[r.contender] for g in groups for r in g})
    return _png(figure)


def _draw_bar(axis: Any, y: float, record: Record, factor: float, text: str, colour: str) -> None:
    if record.value is None:
        # In axis coordinates: a logarithmic axis has no zero.
        axis.text(0.01, y, record.status, transform=axis.get_yaxis_transform(), va="center", fontsize=7, color=colour)
        return
    spread = record.interquartile_range
    ends = [[(record.value - spread[0]) / factor], [(spread[1] - record.value) / factor]] if spread else None
    axis.barh(y, record.value / factor, height=0.85, color=colour, xerr=ends, error_kw={"lw": 1, "ecolor": "#222222"})
    end = (spread[1] if spread else record.value) / factor
    axis.annotate(text, (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)


def _draw_lines(
    title: str, x_name: str, panels: dict[str, dict[str, list[tuple[float, Record]]]], colours: dict[str, str]
) -> bytes:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogFormatter, NullFormatter, NullLocator

    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.4 * across, 1 + 3.6 * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    found = [p for lines in panels.values() for points in lines.values() for p in points]
    scale = scale_of([r.value for _, r in found if r.value is not None], found[0][1].unit)
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        for contender, points in lines.items():
            xs = [x for x, _ in points]
            ys = [(r.value or 0) / scale.factor for _, r in points]
            axis.plot(xs, ys, marker="o", ms=4, lw=1.6, color=colours[contender])
            ends = [r.interquartile_range or (r.value or 0, r.value or 0) for _, r in points]
            low, high = ([end[i] / scale.factor for end in ends] for i in (0, 1))
            axis.fill_between(xs, low, high, color=colours[contender], alpha=0.2, lw=0)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())  # 100, not a power of ten
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(x_name)
        axis.set_ylabel(scale.name)
        axis.grid(True, which="both", lw=0.3, alpha=0.5)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    _finish(figure, axes, title, {name: colours[name] for lines in panels.values() for name in lines})
    return _png(figure)


def _finish(figure: Any, axes: Sequence[Any], title: str, names: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without matplotlib's version, so that equal figures make equal files.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
