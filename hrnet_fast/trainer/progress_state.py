"""``RunProgress``: where a run is: what a checkpoint keeps beside the network's state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hrnet_fast.datasets.samples import SkippedSample
from hrnet_fast.trainer.processes import Processes


@dataclass
class RunProgress:
    """Where a run is.

    Attributes:
        iteration: updates done.
        evaluated: the iteration of the last evaluation, 0 before.
        window: losses since the last record of a step.
        window_parts: likewise the named parts of the loss.
        epoch_loss: sum of this epoch's losses so far.
        epoch_seconds, epoch_waited: time of this epoch so far, and of it waiting for data.
        best: the best figure by the kind of weights, ``"raw"`` or ``"ema"``, and ``best_epoch`` its epoch.
        skipped: broken samples that were left out: file, row and reason.
        finished: whether all is done.
    """

    iteration: int = 0
    evaluated: int = 0
    window: list[float] = field(default_factory=list)
    window_parts: dict[str, list[float]] = field(default_factory=dict)
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    epoch_waited: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: dict[str, int] = field(default_factory=dict)
    skipped: list[list[str]] = field(default_factory=list)
    finished: bool = False

    def add_loss(self, value: float, named: Mapping[str, float]) -> None:
        """Count the loss of an update and its named parts."""
        self.window.append(value)
        for name, part in named.items():
            self.window_parts.setdefault(name, []).append(part)
        self.epoch_loss += value

    def add_skipped(self, samples: tuple[SkippedSample, ...]) -> None:
        """Count broken samples, each once."""
        for one in samples:
            entry = [one.path, one.row, one.reason]
            if entry not in self.skipped:
                self.skipped.append(entry)

    def is_better(self, weights: str, figure: float, higher: bool) -> bool:
        """Whether a figure is the best so far of this kind of weights; NaN is not."""
        if math.isnan(figure):
            return False
        best = self.best.get(weights)
        return best is None or (figure > best if higher else figure < best)

    def forget_best(self) -> None:
        """Drop the best figures, which later ones cannot be compared with."""
        self.best, self.best_epoch = {}, {}

    def data(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return dataclasses.asdict(self)


def state_of_process(states: list[dict[str, Any]], processes: Processes) -> tuple[dict[str, Any], str]:
    """Return a process's own of the states in a checkpoint, and a note if there were more or fewer processes."""
    if len(states) == processes.count:
        return states[processes.rank], ""
    return states[0], (
        f"the run had {len(states)} processes and goes on with {processes.count}: random numbers of the steps begin "
        "anew, and this epoch's mean loss counts the first process alone until here"
    )
