"""Draws the README's pictures from a result file: latency, and speed and memory of training by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports.crossings import Points, crossings, speeds
from benchmarks.reports.figures import baseline_of
from benchmarks.reports.plots import colours_of
from benchmarks.reports.records import Record, Run, by_case
from hrnet_fast.errors import InputError
from hrnet_fast.html_report import check_packages

SHOWN_PEERS = ("eager channels-last", "ONNX Runtime", "OpenVINO", "hrnet_fast engine")
TRAINING = "scaling training batch"
GREY = "#555555"
Groups = dict[str, dict[str, float]]


def draw_pictures(run: Run, output: Path) -> list[Path]:
    """Write latency.png and training.png into a folder, and return the paths of those that the run has figures of.

    Raises:
        InputError: matplotlib is missing, the run has figures of neither, or the folder cannot be created or written.
    """
    check_packages("bench")
    suites = {r.suite for r in run.records if r.value and (r.suite == TRAINING or r.contender in SHOWN_PEERS)}
    drawn = {name: draw for suite, (name, draw) in PICTURES.items() if suite in suites}
    if not drawn:
        raise InputError(f"the result file has no figures of {' or '.join(PICTURES)}; give one of a complete run.")
    import matplotlib as mpl

    mpl.use("Agg")
    device, threads = run.machine.get("device", "unknown device"), run.machine.get("threads", "unknown")
    below = f"{device}, {threads} threads; {run.created[:10]}, revision {run.revision[:12]}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, draw in drawn.items():
            draw(run.records, below, output / name)
    except OSError as error:
        raise InputError(f"{output}: the pictures cannot be written ({error}).") from error
    return [output / name for name in drawn]


def _draw_latency(records: Sequence[Record], below: str, path: Path) -> None:
    """Draw milliseconds of one call by case and contender, a panel for each dtype."""
    chosen = [r for r in records if r.suite == "inference" and r.contender in SHOWN_PEERS and r.value is not None]
    panels: list[tuple[str, Groups]] = []
    for dtype in ("float32", "bfloat16"):
        groups: Groups = {}
        for group in by_case([r for r in chosen if r.dtype == dtype]).values():
            found = {r.contender: r.value * 1e3 for r in group if r.value is not None}
            groups[group[0].case] = {peer: found[peer] for peer in SHOWN_PEERS if peer in found}
        panels.append((f"inference, {dtype} [ms]", groups))
    _draw_bars(panels, colours_of(chosen), below, path)


def _draw_training(records: Sequence[Record], below: str, path: Path) -> None:
    """Draw the speed of a training step over eager execution and the memory that it keeps, by batch and dtype."""
    from matplotlib import pyplot as plt

    chosen = [r for r in records if r.suite == TRAINING and r.value]
    colours = colours_of(chosen)
    dtypes = list(dict.fromkeys(r.dtype for r in chosen))
    figure, axes = plt.subplots(len(dtypes), 2, figsize=(13, 0.9 + 3.4 * len(dtypes)), squeeze=False)
    lines: dict[str, Any] = {}
    for (left, right), dtype in zip(axes, dtypes, strict=True):
        of_dtype = [r for r in chosen if r.dtype == dtype]
        ratios = {name: points for (_, name), points in speeds(TRAINING, of_dtype).items()}
        kept: dict[str, Points] = {}
        for record in of_dtype:
            if record.quantity == "kept for backward" and record.value:
                kept.setdefault(record.contender, []).append((record.params["batch"], record.value / 2**20))
        left.axhline(1.0, color=colours[baseline_of(chosen).contender], linewidth=1)
        for axis, points_of in ((left, ratios), (right, kept)):
            for name, points in points_of.items():
                lines[name] = axis.plot(*zip(*sorted(points), strict=True), marker="o", ms=4, color=colours[name])[0]
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks := sorted({x for p in points_of.values() for x, _ in p}), [f"{x:g}" for x in ticks])
            axis.set_xlabel("batch", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        for name, points in ratios.items():
            left.plot(at := crossings(points), [1.0] * len(at), "x", color=colours[name], ms=9)
        right.set_yscale("log", base=2)
        right.yaxis.set_major_formatter("{x:.0f}")
        left.set_title(f"speed of a training step / faster eager layout, {dtype}", fontsize=10)
        right.set_title(f"kept for backward [MiB], {dtype}", fontsize=10)
    names = list(dict.fromkeys(r.contender for r in chosen if r.contender in lines))
    figure.legend([lines[n] for n in names], names, loc="upper center", ncols=4, frameon=False, fontsize=8)
    figure.text(0.5, 0.01, f"{chosen[0].case.rpartition(' batch')[0]}; {below}", ha="center", fontsize=7, color=GREY)
    figure.tight_layout(rect=(0, 0.03, 1, 0.95))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_bars(panels: Sequence[tuple[str, Groups]], colours: dict[str, str], below: str, path: Path) -> None:
    """Draw horizontal bars, a panel for each of `panels`."""
    from matplotlib import pyplot as plt

    rows = max(sum(len(figures) + 0.6 for figures in groups.values()) for _, groups in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 1.2 + 0.22 * rows))
    shown: dict[str, Any] = {}
    for axis, (title, groups) in zip(axes, panels, strict=True):
        at, ticks = 0.0, []
        for figures in groups.values():
            ticks.append(at + (len(figures) - 1) / 2)
            for contender, value in figures.items():
                bar = axis.barh(at, value, 0.92, color=colours[contender])
                axis.text(value, at, f" {value:.0f}", va="center", fontsize=7)
                shown.setdefault(contender, bar)
                at += 1
            at += 0.6
        axis.set_yticks(ticks, list(groups), fontsize=7)
        axis.invert_yaxis()
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(list(shown.values()), list(shown), loc="upper center", ncols=len(shown), frameon=False, fontsize=8)
    figure.text(0.5, 0.01, below, ha="center", fontsize=7, color=GREY)
    figure.tight_layout(rect=(0, 0.03, 1, 0.94))
    figure.savefig(path, dpi=100)
    plt.close(figure)


# The pictures by the suite that each is drawn from.
PICTURES: dict[str, tuple[str, Callable[[Sequence[Record], str, Path], None]]] = {
    "inference": ("latency.png", _draw_latency),
    TRAINING: ("training.png", _draw_training),
}
