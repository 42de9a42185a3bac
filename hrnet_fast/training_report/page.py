"""``write_training_report``: ``curves.png`` and ``report.html`` in a run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hrnet_fast.errors import InputError
from hrnet_fast.html_report import check_packages, render_html
from hrnet_fast.trainer.records import read_log
from hrnet_fast.training_report.curves import draw_curves
from hrnet_fast.training_report.examples import Example
from hrnet_fast.whole_files import written_whole

_CLASS_FIGURE = "/"  # in the names of figures of single classes, such as iou/road


def write_training_report(
    folder: str | os.PathLike[str], examples: Sequence[Example] = (), note: str = ""
) -> list[Path]:
    """Write the curves and the page of a run; return their paths.

    The page contains its pictures. It shows how the run ended, the curves, figures by epoch, the best and worst
    examples, what the step chose and why, the environment and the recipe.

    Args:
        folder: the run's, with ``log.jsonl``, ``environment.json`` and ``recipe.yaml``.
        examples: of :func:`~hrnet_fast.training_report.draw_examples`.
        note: one line on the examples.

    Raises:
        InputError: matplotlib or jinja2 is missing, or a file cannot be read or written.
    """
    check_packages("demo")
    path = Path(folder)
    records = read_log(path / "log.jsonl")
    try:
        recipe = (path / "recipe.yaml").read_text(encoding="utf-8")
        environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the files of a run cannot be read ({error}).") from error
    title = describe(recipe) or path.name
    curves = draw_curves(records, title)
    template = resources.files("hrnet_fast").joinpath("data/training_report.html").read_text(encoding="utf-8")
    start: Mapping[str, Any] = next((r for r in reversed(records) if r["kind"] == "start"), {})
    columns, rows = figure_table(records)
    page = render_html(
        template,
        title=title,
        ending=ending(records),
        start=start,
        curves=curves,
        columns=columns,
        rows=rows,
        class_figures=class_figures(records),
        examples=examples,
        note=note,
        choices=start.get("choices", {}),
        environment=flat(environment),
        recipe=recipe,
    )
    written = [path / "curves.png", path / "report.html"]
    try:
        for file, content in zip(written, (curves, page.encode()), strict=True):
            with written_whole(file) as unfinished:
                unfinished.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written ({error}).") from error
    return written


def describe(recipe: str) -> str:
    """Return the description in a recipe's YAML, "" without one."""
    import yaml

    data = yaml.safe_load(recipe)
    return str(data.get("description", "")) if isinstance(data, Mapping) else ""


def ending(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one line on how a run ended."""
    last = next((r for r in reversed(records) if r["kind"] in ("start", "stop", "end")), None)
    if last is None or last["kind"] == "start":
        return "not finished: the run goes on, or its process ended without a word"
    if last["kind"] == "end":
        return f"finished after {last['iteration']} updates"
    return f"stopped after {last['iteration']} updates: {last['reason']}; it can be resumed"


def figure_table(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and a row for each evaluation; figures of single classes are left out."""
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    losses = {r["epoch"]: r["loss"] for r in records if r["kind"] == "epoch"}
    names = [n for n in dict.fromkeys(n for r in evaluations for n in r["figures"]) if _CLASS_FIGURE not in n]
    rows = [
        [
            str(r["epoch"]),
            r["weights"],
            shown_number(losses.get(r["epoch"])),
            *(shown_number(r["figures"].get(name)) for name in names),
            "best" if r.get("best") else "",
        ]
        for r in evaluations
    ]
    return ["epoch", "weights", "loss", *names, ""], rows


def class_figures(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the figures of single classes of the last evaluation."""
    last: Mapping[str, Any] = next((r for r in reversed(records) if r["kind"] == "evaluation"), {"figures": {}})
    return [(name, shown_number(value)) for name, value in last["figures"].items() if _CLASS_FIGURE in name]


def shown_number(value: float | None) -> str:
    """Return a number with four digits, "-" for one that is missing."""
    return "-" if value is None else f"{value:.4g}"


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the entries of nested mappings with dotted names; those that are missing are left out."""
    found: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found.append((prefix + name, " ".join(map(str, value))))
        elif value is not None:
            found.append((prefix + name, str(value)))
    return found
