"""Curves of a run: loss, learning rate, figures, images per second and waiting, from its log."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Figures in pixels; the others are shares from 0 to 1.
_PIXELS = ("rmse", "mean_error")
_MOST_LINES = 6


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        name: in the legend.
        epochs: where it has values; a step within an epoch is a fraction.
        values: at these places.
    """

    name: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


def collect_curves(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Curve]]:
    """Return the curves of each panel of a run's records (:func:`hrnet_fast.trainer.records.read_log`).

    Values that are not finite are left out. Figures of single classes (``iou/road``) are left out, and all but the
    first six of others.
    """
    lengths = [r["iterations_per_epoch"] for r in records if r["kind"] == "start"]
    per_epoch = lengths[-1] if lengths else 1
    panels: dict[str, list[Curve]] = {}

    def add(panel: str, name: str, points: Sequence[tuple[float, Any]]) -> None:
        kept = [(float(x), float(y)) for x, y in points if y is not None]
        if kept:
            panels.setdefault(panel, []).append(Curve(name, tuple(x for x, _ in kept), tuple(y for _, y in kept)))

    steps = [(r["iteration"] / per_epoch, r) for r in records if r["kind"] == "step"]
    epochs = [(r["epoch"], r) for r in records if r["kind"] == "epoch"]
    add("loss", "steps", [(x, r["loss"]) for x, r in steps])
    add("loss", "mean of the epoch", [(x, r["loss"]) for x, r in epochs])
    for name in dict.fromkeys(name for _, r in steps for name in r.get("losses", ())):
        if "loss" in name:  # others are percentages
            add("parts of the loss", name, [(x, r.get("losses", {}).get(name)) for x, r in steps])
    add("learning rate", "", [(x, r["lr"]) for x, r in steps])
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    names = [name for name in dict.fromkeys(n for r in evaluations for n in r["figures"]) if "/" not in name]
    for name in names[:_MOST_LINES] + [n for n in names[_MOST_LINES:] if n in _PIXELS]:
        for weights in dict.fromkeys(r["weights"] for r in evaluations):
            label = name if weights == "raw" else f"{name} ({weights})"
            found = [(r["epoch"], r["figures"].get(name)) for r in evaluations if r["weights"] == weights]
            add("errors in pixels" if name in _PIXELS else "figures", label, found)
    add("images per second", "", [(x, r["images_per_second"]) for x, r in steps])
    add("share of time waiting for data", "", [(x, r["wait_share"]) for x, r in steps])
    return panels


def draw_curves(records: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Return a PNG with a panel for each quantity, over epochs. It needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot

    panels = collect_curves(records)
    rows = max(1, -(-len(panels) // 3))
    figure, axes = pyplot.subplots(rows, 3, figsize=(12, 3.2 * rows), layout="constrained", squeeze=False)
    for axis, (name, curves) in zip(axes.flat, panels.items(), strict=False):
        for curve in curves:
            # A single point has no line.
            marker = "o" if len(curve.values) < 40 else None
            axis.plot(curve.epochs, curve.values, label=curve.name or None, marker=marker, markersize=3, linewidth=1.2)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        if name == "loss" and min(min(curve.values) for curve in curves) > 0:
            axis.set_yscale("log")
        elif name != "loss":
            axis.set_ylim(bottom=0)
        if any(curve.name for curve in curves):
            axis.legend(fontsize=8)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
