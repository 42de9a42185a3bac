"""Writes the demonstration's results: table rows, a PNG chart, JSON and one self-contained HTML page."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from PIL import Image

from hrnet_fast.demo.contenders import unusable
from hrnet_fast.demo.measurement import TaskResult
from hrnet_fast.errors import InputError
from hrnet_fast.html_report import render_html

COLUMNS = (
    "task",
    "network",
    "weights",
    "run as",
    "error to float64>",
    "median ms>",
    "operator calls>",
    "peak MiB>",
    "set-up s>",
)


def table_rows(results: Sequence[TaskResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return column names and one row per task and contender."""
    rows: list[tuple[str, ...]] = [
        (
            r.task if i == 0 else "",
            f"{r.model} {r.input_size[0]}x{r.input_size[1]}" if i == 0 else "",
            f"{r.weights}, {r.family} names" if i == 0 else "",
            m.contender,
            f"{m.error:.1e}",
            f"{m.seconds * 1e3:.1f}",
            str(m.launches),
            f"{m.peak_bytes / 2**20:.1f}",
            f"{m.setup_seconds:.2f}",
        )
        for r in results
        for i, m in enumerate(r.measurements)
    ]
    return COLUMNS, rows


def write_demo_report(results: Sequence[TaskResult], output: Path) -> list[Path]:
    """Write ``report.html``, ``chart.png``, ``results.json`` and a picture per task into the folder; return the paths.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        paths = [output / "results.json", output / "chart.png", output / "report.html"]
        data = {"results": [r.to_dict() for r in results], "not_run": unusable()}
        paths[0].write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        chart = draw_chart(results)
        paths[1].write_bytes(chart)
        paths[2].write_text(_demo_page(results, chart), encoding="utf-8")
        for r in results:
            r.picture.save(output / f"{r.task}.png")
            paths.append(output / f"{r.task}.png")
    except OSError as error:
        raise InputError(f"{output}: the report cannot be written ({error}).") from error
    return paths


def draw_chart(results: Sequence[TaskResult]) -> bytes:
    """Return a PNG with bars of latency and of peak activation memory, by task and contender."""
    import matplotlib

    matplotlib.use("Agg")  # no screen is needed
    from matplotlib import pyplot

    names = list(dict.fromkeys(m.contender for r in results for m in r.measurements))
    panels = (
        ("median latency, ms (log scale)", 1e3, "seconds"),
        ("peak activations, MiB (log scale)", 2**-20, "peak_bytes"),
    )
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for axis, (label, unit, field) in zip(axes, panels, strict=True):
        for k, name in enumerate(names):
            at = [i + (k - (len(names) - 1) / 2) * 0.8 / len(names) for i in range(len(results))]
            found = [next((m for m in r.measurements if m.contender == name), None) for r in results]
            heights = [getattr(m, field) * unit if m else 0.0 for m in found]
            bars = axis.bar(at, heights, width=0.75 / len(names), label=name)
            axis.bar_label(bars, fmt="%.0f", fontsize=8)
        axis.set_xticks(range(len(results)), [f"{r.task}\n{r.input_size[0]}x{r.input_size[1]}" for r in results])
        axis.set_yscale("log")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"HRNet, one image, {results[0].device}", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    return buffer.getvalue()


def _demo_page(results: Sequence[TaskResult], chart: bytes) -> str:
    text = resources.files("hrnet_fast").joinpath("data/demo_report.html").read_text(encoding="utf-8")
    columns, rows = table_rows(results)
    return render_html(
        text,
        results=results,
        columns=[(c.removesuffix(">"), c.endswith(">")) for c in columns],
        rows=rows,
        chart=chart,
        pictures={r.task: _png_bytes(r.picture) for r in results},
        unusable=unusable(),
        random=[r.task for r in results if r.random_weights],
    )


def _png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
