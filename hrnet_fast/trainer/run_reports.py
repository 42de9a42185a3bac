"""``RunReports``: what a run writes to its log and tells its callbacks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from hrnet_fast.errors import TrainingError
from hrnet_fast.trainer.callbacks import Callback
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.progress_state import RunProgress
from hrnet_fast.trainer.records import RunLog
from hrnet_fast.trainer.sampler import TrainingOrder
from hrnet_fast.trainer.step_runner import StepRunner


class RunReports:
    """Collects times and losses, and makes records of them.

    A record of a step holds the mean loss since the one before. It is written when its last loss has been read, so the
    records are the same wherever a run was stopped and resumed.

    Args:
        order: how long an epoch is.
        processes: means are over all of them.
        progress: where the run is.
        callbacks: receive each record.
        every: updates between two records of a step.
    """

    def __init__(
        self,
        order: TrainingOrder,
        processes: Processes,
        progress: RunProgress,
        callbacks: Sequence[Callback],
        every: int,
    ) -> None:
        self._order, self._processes, self._progress = order, processes, progress
        self._callbacks, self._every = callbacks, every
        self._seconds = self._waited = 0.0
        self._images = 0
        self._stopped = False
        self.log: RunLog | None = None

    def write(self, kind: str, **record: Any) -> None:
        """Write a record, in the first process."""
        if self.log is None:
            return
        full = {"kind": kind, **record}
        self.log.write(full)
        for one in self._callbacks:
            one.record(full)

    def note(self, part: Any) -> None:
        """Write what a part of the run says of itself, where there is such a part."""
        if part is not None:
            self.write("note", text=str(part.explain()))

    def start(self, runner: StepRunner, environment: Mapping[str, Any], *, resumed: bool, note: str) -> None:
        """Write how the run begins: length, first weights, fast paths and their reasons, environment."""
        order = self._order
        self.write(
            "start", iteration=self._progress.iteration, iterations=order.iterations,
            iterations_per_epoch=order.iterations_per_epoch, epochs=order.loop.epochs, samples=order.samples,
            left_out=order.left_out, resumed=resumed, note=note, notes=getattr(runner.model, "notes", ()),
            parameters=sum(p.numel() for p in runner.model.parameters()), choices=runner.explain(),
            environment=environment,
        )  # fmt: skip

    def updated(self, iteration: int, seconds: float, waited: float) -> None:
        """Count an update.

        Args:
            iteration: counted from 0.
            seconds, waited: the time it took, and of that the time spent waiting for data.
        """
        progress = self._progress
        progress.epoch_seconds += seconds
        progress.epoch_waited += waited
        self._seconds += seconds
        self._waited += waited
        self._images += self._order.share(iteration) * self._order.parts
        for one in self._callbacks:
            one.iteration(iteration + 1, self._order.iterations)

    def loss(self, iteration: int, value: float, rate: float, named: Mapping[str, float]) -> None:
        """Count the loss of an update, counted from 0, with its learning rate and named parts.

        Write the record that it completes.
        """
        done, progress = iteration + 1, self._progress
        progress.add_loss(value, named)
        if done % self._every and done % self._order.iterations_per_epoch:
            return
        windows = [progress.window, *progress.window_parts.values()]
        local = [self._seconds, self._waited, *(sum(window) / len(window) for window in windows)]
        seconds, waited, loss, *means = self._processes.means(local)
        parts = {"losses": dict(zip(progress.window_parts, means, strict=True))} if means else {}
        epoch = iteration // self._order.iterations_per_epoch + 1
        speed = self._speed(self._images, seconds, waited)
        self.write("step", iteration=done, epoch=epoch, loss=loss, lr=rate, **parts, **speed)
        progress.window, progress.window_parts = [], {}
        self._seconds = self._waited = 0.0
        self._images = 0

    def epoch(self) -> None:
        """Write the record of an epoch, whose losses have all been read."""
        progress, count = self._progress, self._order.iterations_per_epoch
        local = [progress.epoch_loss / count, progress.epoch_seconds, progress.epoch_waited]
        loss, seconds, waited = self._processes.means(local)
        for skipped in self._processes.gathered(progress.skipped):
            progress.skipped += [one for one in skipped if one not in progress.skipped]
        self.write(
            "epoch", epoch=progress.iteration // count, iteration=progress.iteration, loss=loss, seconds=seconds,
            skipped=len(progress.skipped), **self._speed(self._order.samples - self._order.left_out, seconds, waited),
        )  # fmt: skip
        progress.epoch_loss = progress.epoch_seconds = progress.epoch_waited = 0.0

    def stop(self, reason: str, **details: Any) -> None:
        """Write why the run stops; the first reason only, as an error may follow from another."""
        if not self._stopped:
            self._stopped = True
            with contextlib.suppress(TrainingError):  # the disk may be what the run stops for
                self.write("stop", iteration=self._progress.iteration, reason=reason, **details)

    def evaluating(self, done: int, total: int) -> None:
        """Tell how far an evaluation is."""
        for one in self._callbacks:
            one.evaluation(done, total)

    def close(self) -> None:
        """Close the log and the callbacks."""
        if self.log is not None:
            self.log.close()
        for one in self._callbacks:
            one.close()

    @staticmethod
    def _speed(images: int, seconds: float, waited: float) -> Mapping[str, float | None]:
        if not seconds:
            return {"images_per_second": None, "wait_share": None}
        return {"images_per_second": images / seconds, "wait_share": waited / seconds}
