"""``TrainingBar``: the progress of a run on standard error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hrnet_fast.trainer import Callback


class TrainingBar(Callback):
    """Shows a bar with the loss, images per second and what steps wait for, and a line for each evaluation.

    Where standard error is no terminal there is no bar, and each epoch has a line.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._steps = self._progress.add_task("training", total=None, state="")
        self._samples = self._progress.add_task("evaluation", total=None, visible=False, state="")

    def record(self, record: Mapping[str, Any]) -> None:
        """Show what a record says."""
        kind = record["kind"]
        if kind == "start":
            for name, choice in record["choices"].items():
                self._say(f"{name}: {'yes' if choice['chosen'] else 'no'} ({choice['reason']})")
            if record["note"]:
                self._say(record["note"])
            self._progress.update(self._steps, total=record["iterations"], completed=record["iteration"])
            self._progress.start()  # not before: a run that is refused leaves the terminal alone
        elif kind == "step":
            self._progress.update(self._steps, state=f"loss {record['loss']:.4g}, {speed(record)}")
        elif kind == "epoch" and not self._console.is_terminal:
            self._say(f"epoch {record['epoch']}: loss {record['loss']:.4g}, {speed(record)}")
        elif kind == "evaluation":
            self._progress.update(self._samples, visible=False)
            self._say(f"epoch {record['epoch']}, {record['weights']} weights: {told_figures(record['figures'])}")
        elif kind == "note":
            self._say(record["text"])

    def iteration(self, done: int, total: int) -> None:
        """Move the bar of updates."""
        self._progress.update(self._steps, completed=done, total=total)

    def evaluation(self, done: int, total: int) -> None:
        """Move the bar of evaluated samples."""
        self._progress.update(self._samples, completed=done, total=total, visible=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()

    def _say(self, text: str) -> None:
        if self._console.is_terminal:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)


def speed(record: Mapping[str, Any]) -> str:
    """Return the speed of a record, and what its time was spent on."""
    if not record["images_per_second"]:
        return "speed unknown"
    data = 100 * record["wait_share"]
    return f"{record['images_per_second']:.1f} images/s, {data:.0f} % waiting for data, {100 - data:.0f} % for the step"


def told_figures(figures: Mapping[str, float | None]) -> str:
    """Return figures on one line, without those of single classes."""
    shown = {name: value for name, value in figures.items() if "/" not in name}
    return ", ".join(f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in shown.items())
