"""Draws the README's pictures from a result file: latency, and memory and time of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reports.figures import baseline_of
from benchmarks.reports.plots import colours_of
from benchmarks.reports.records import Record, Run, by_case
from hrnet_fast.errors import InputError
from hrnet_fast.html_report import check_packages

SHOWN_PEERS = ("eager channels-last", "ONNX Runtime", "OpenVINO", "hrnet_fast engine")
# Contenders that are `accelerate` with the default memory level or with "min".
LEVELS = {"hrnet_fast": "accelerate", "hrnet_fast accelerate": "accelerate", "hrnet_fast memory=min": 'memory="min"'}
Groups = dict[str, dict[str, float]]


def draw_pictures(run: Run, output: Path) -> list[Path]:
    """Write latency.png and training.png into a folder, and return their paths.

    Raises:
        InputError: matplotlib is missing, the run has no figures of inference or of training, or the folder cannot be
            created or written.
    """
    check_packages("bench")
    absent = sorted({"inference", "training"} - {r.suite for r in run.records if r.value is not None})
    if absent:
        raise InputError(f"the result file has no figures of {' and '.join(absent)}; give one of a complete run.")
    import matplotlib as mpl

    mpl.use("Agg")
    paths = [output / "latency.png", output / "training.png"]
    device, threads = run.machine.get("device", "unknown device"), run.machine.get("threads", "unknown")
    below = f"{device}, {threads} threads; {run.created[:10]}, revision {run.revision[:12]}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        _draw_latency(run.records, below, paths[0])
        _draw_training(run.records, below, paths[1])
    except OSError as error:
        raise InputError(f"{output}: the pictures cannot be written ({error}).") from error
    return paths


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
    _draw(panels, colours_of(chosen), below, path, "{:.0f}")


def _draw_training(records: Sequence[Record], below: str, path: Path) -> None:
    """Draw memory kept for backward and the time of a step of every training case, relative to eager execution."""
    panels = [
        ("kept for backward / eager", _over_eager(records, "kept for backward")),
        ("training step / eager channels-last", _over_eager(records, "training step")),
    ]
    _draw(panels, {"accelerate": "#d55e00", 'memory="min"': "#f2a065"}, below, path, "{:.2f}", one=True)


def _over_eager(records: Sequence[Record], quantity: str) -> Groups:
    groups: Groups = {}
    measured = [r for r in records if r.quantity == quantity and r.value is not None and "contiguous" not in r.case]
    for group in by_case(measured).values():
        base = baseline_of(group)
        ours = {
            LEVELS[r.contender]: r.value / base.value for r in group if r.contender in LEVELS and r.value and base.value
        }
        if ours:
            groups[f"{base.case.replace(' channels_last', '')} {base.dtype}"] = ours
    return groups


def _draw(
    panels: Sequence[tuple[str, Groups]], colours: dict[str, str], below: str, path: Path, text: str, one: bool = False
) -> None:
    """Draw horizontal bars, a panel for each of `panels`; with `one`, a line at one."""
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
                axis.text(value, at, " " + text.format(value), va="center", fontsize=7)
                shown.setdefault(contender, bar)
                at += 1
            at += 0.6
        axis.set_yticks(ticks, list(groups), fontsize=7)
        axis.invert_yaxis()
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        if one:
            axis.axvline(1.0, color="#8a8a8a", linewidth=1)
    figure.legend(list(shown.values()), list(shown), loc="upper center", ncols=len(shown), frameon=False, fontsize=8)
    figure.text(0.5, 0.01, below, ha="center", fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.03, 1, 0.94))
    figure.savefig(path, dpi=100)
    plt.close(figure)
