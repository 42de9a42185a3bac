"""``TrainingRun``: the loop itself."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hrnet_fast.datasets import AnnotatedImages
from hrnet_fast.errors import HRNetFastError, TrainingError, some_of
from hrnet_fast.random_states import seed_host_generators
from hrnet_fast.recipes.recipe import Recipe
from hrnet_fast.trainer.batches import TrainingBatches, worker_failure
from hrnet_fast.trainer.callbacks import Callback
from hrnet_fast.trainer.loop import TrainingOutcome
from hrnet_fast.trainer.pending_losses import RunLosses
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.progress_state import RunProgress, state_of_process
from hrnet_fast.trainer.random_state import random_state, restore_random_state, seed_steps
from hrnet_fast.trainer.records import RunLog, environment
from hrnet_fast.trainer.run_evaluation import RunEvaluation, StopRequestedError
from hrnet_fast.trainer.run_folder import RunFolder, check_same_run, measures_otherwise
from hrnet_fast.trainer.run_reports import RunReports
from hrnet_fast.trainer.sampler import TrainingOrder
from hrnet_fast.trainer.schedule import Schedule
from hrnet_fast.trainer.step_runner import StepRunner
from hrnet_fast.trainer.stop_requests import StopRequests
from hrnet_fast.trainer.task import TrainingTask


class TrainingRun:
    """One call of :func:`~hrnet_fast.trainer.train`, whose arguments these are, in one process.

    An update is: read the batch, agree with the other processes, save where it is due, step, read losses of earlier
    updates. The processes agree on the host before each micro-batch on whether one of them was asked to stop, cannot
    read its data or found a loss that is not finite; so all leave the loop in the same place.
    """

    def __init__(
        self,
        task: TrainingTask,
        recipe: Recipe,
        out: Path,
        processes: Processes,
        requests: StopRequests,
        callbacks: Sequence[Callback],
        *,
        resume: bool,
        log_every: int,
        save_seconds: float,
        save_iterations: int,
    ) -> None:
        self._task, self._recipe, self._processes, self._requests = task, recipe, processes, requests
        self._save_seconds, self._save_iterations = save_seconds, save_iterations
        self._batches: TrainingBatches | None = None
        self._generator = torch.Generator()
        loop, samples = recipe.loop, len(task.train)  # type: ignore[arg-type]
        order = self._order = TrainingOrder(samples, loop, processes.count, processes.rank)
        self._schedule = Schedule(recipe.schedule, order.iterations_per_epoch, loop.epochs)
        self._folder = processes.from_first(lambda: RunFolder(out, resume))
        state = self._folder.load() if resume else None
        self._resumed = state is not None
        if state is not None:
            check_same_run(out, state, recipe, samples)
        own, self._note = (None, "") if state is None else state_of_process(state["processes"], processes)
        self._progress = RunProgress() if own is None else RunProgress(**own["progress"])
        if state is not None and measures_otherwise(state["recipe"], recipe):
            self._progress.forget_best()
        self._reports = RunReports(order, processes, self._progress, callbacks, log_every)
        self._losses = RunLosses(order, processes, self._reports, self._rate, self._saved_state)
        if self._progress.finished:
            self._evaluation: RunEvaluation | None = None
            return
        seed_host_generators(loop.seed)
        self._runner = StepRunner(task, recipe, processes)
        self._evaluation = RunEvaluation(
            task, loop.evaluate_every, order, self._runner, processes, requests, self._reports, self._folder,
            self._progress,
        )  # fmt: skip
        seed_steps(loop.seed, processes.rank, processes.device)
        if state is not None and own is not None:
            self._runner.load_state(state)
            if not self._note:
                restore_random_state(own["random"], processes.device)
        self._environment = environment(processes.device, processes.count)
        processes.from_first(lambda: self._open_folder(0 if state is None else state["log_size"]))
        self._saved_at, self._saved_iteration = time.monotonic(), self._progress.iteration

    def run(self) -> TrainingOutcome:
        """Train to the end, or until a request to stop."""
        progress, evaluation = self._progress, self._evaluation
        if evaluation is None:
            return self._outcome()
        try:
            self._reports.start(self._runner, self._environment, resumed=self._resumed, note=self._note)
            if not progress.iteration:
                self._save()  # so that a disk that cannot be written is noticed at once
            stopped = self._evaluate(evaluation)
            while not stopped and progress.iteration < self._order.iterations:
                stopped = self._update() or self._evaluate(evaluation)
            return self._stop() if stopped else self._finish(evaluation)
        except (Exception, KeyboardInterrupt) as error:
            died = worker_failure(error) if isinstance(error, RuntimeError) else None
            self._reports.stop(f"{type(died or error).__name__}: {died or error}")
            if died is not None:
                raise died from error
            raise

    def close(self) -> None:
        """End workers, and close files."""
        if self._batches is not None:
            self._batches.close()
        self._reports.close()

    def _update(self) -> bool:
        """Train on one global batch. Return whether a request to stop came instead."""
        progress, iteration, accumulate = self._progress, self._progress.iteration, self._recipe.loop.accumulate
        begin, saving = time.perf_counter(), 0.0
        if self._batches is None:
            self._batches = TrainingBatches(
                self._task, self._order, iteration, self._recipe.data.workers, self._processes.device
            )
        self._runner.set_rate(self._schedule.factor(iteration))
        for micro in range(accumulate):
            batch, error = self._next_batch(self._batches, micro == 0)
            stop, save = self._agree(error, micro == 0)
            if stop:
                return True
            if save:
                saving -= time.perf_counter()
                self._save()
                saving += time.perf_counter()
            self._generator.manual_seed(self._order.augmentation_seed(iteration, micro))
            images, targets = self._task.inputs(batch, self._generator)
            loss, named = self._runner.run(images, targets, micro)
            self._losses.add(iteration, loss, batch, micro == accumulate - 1, named)
            self._batches.prefetch()
        progress.iteration += 1
        self._reports.updated(iteration, time.perf_counter() - begin - saving, self._batches.take_waited())
        self._losses.read()
        if progress.iteration % self._order.iterations_per_epoch == 0:
            self._losses.settle()
            self._reports.epoch()
            explained = (self._runner.graphed, getattr(self._task.train, "cache", None))
            for one in explained if progress.iteration == self._order.iterations_per_epoch else ():
                self._reports.note(one)
        return False

    def _next_batch(self, batches: TrainingBatches, first: bool) -> tuple[Any, HRNetFastError | None]:
        """Return a batch, or why there is none; nothing where an update need not begin."""
        if first and self._requests.received and self._processes.count == 1:
            return None, None
        try:
            batch = batches.next()
        except HRNetFastError as error:
            return None, error
        self._progress.add_skipped(batch.skipped)
        if batch.skipped and isinstance(self._task.train, AnnotatedImages):
            self._task.train.add_skipped(batch.skipped)  # a worker has counted in a copy of its own
        return batch, None

    def _agree(self, error: HRNetFastError | None, first: bool) -> tuple[bool, bool]:
        """Return whether to stop and whether to save, in all processes alike.

        Args:
            error: why this process has no batch.
            first: whether the update begins, so that stopping and saving are possible.

        Raises:
            DatasetError, TrainingError: a process has no batch, or a loss is not finite.
        """
        received, bad_loss = self._requests.received, self._losses.bad is not None
        flags = [received, error is not None, bad_loss, first and self._is_save_due()]
        stop, failed, bad, save = self._processes.largest([float(flag) for flag in flags])
        if bad:
            self._losses.refuse()
        if stop and first:
            self._requests.received = int(stop)
            return True, False
        if failed:
            raise error or TrainingError("Another process of this run cannot read its data; its own message says why.")
        return False, bool(save)

    def _is_save_due(self) -> bool:
        new = self._progress.iteration - self._saved_iteration
        if not new or not self._processes.first:
            return False
        return 0 < self._save_seconds <= time.monotonic() - self._saved_at or 0 < self._save_iterations <= new

    def _evaluate(self, evaluation: RunEvaluation) -> bool:
        """Evaluate if it is time. Return whether a request to stop came meanwhile."""
        if evaluation.is_due():
            self._save()
            try:
                evaluation.run()
            except StopRequestedError:
                return True
            self._save()
        return False

    def _rate(self, iteration: int) -> float:
        return self._recipe.optimizer.lr * self._schedule.factor(iteration)

    def _saved_state(self) -> str:
        return f"{self._folder.last} is the state of iteration {self._saved_iteration}."

    def _save(self) -> None:
        """Write ``last.pt``, unless a loss or the weights are not finite."""
        self._losses.settle()
        own = {"progress": self._progress.data(), "random": random_state(self._processes.device)}
        all_of_them = self._processes.gathered(own)
        self._processes.from_first(lambda: self._write_state(all_of_them))
        self._saved_at, self._saved_iteration = time.monotonic(), self._progress.iteration

    def _write_state(self, processes: list[dict[str, Any]]) -> None:
        bad, iteration = self._runner.not_finite(), self._progress.iteration
        if bad:
            raise TrainingError(
                f"Weights or statistics are not finite at iteration {iteration}, while all losses are: {some_of(bad)}. "
                f"Lower the learning rate. {self._saved_state()}"
            )
        assert self._reports.log is not None
        self._folder.save(
            {
                "recipe": self._recipe.to_dict(),
                "samples": self._order.samples,
                "iteration": iteration,
                "processes": processes,
                "log_size": self._reports.log.size(),
                **self._runner.state(),
            }
        )

    def _finish(self, evaluation: RunEvaluation) -> TrainingOutcome:
        evaluation.save_weights("final", "raw")
        if self._runner.ema is not None:
            evaluation.save_weights("final", "ema")
        progress, graphed = self._progress, self._runner.graphed
        self._reports.write(
            "end", iteration=progress.iteration, best=progress.best, best_epoch=progress.best_epoch,
            skipped=progress.skipped, graph=None if graphed is None else str(graphed.explain()),
        )  # fmt: skip
        progress.finished = True
        self._save()
        return self._outcome()

    def _stop(self) -> TrainingOutcome:
        """Save, and stop as was asked."""
        self._losses.settle()
        name = signal.Signals(self._requests.received).name
        self._reports.stop(name)
        self._save()
        return self._outcome(name)

    def _outcome(self, stopped_by: str = "") -> TrainingOutcome:
        progress = self._progress
        return TrainingOutcome(
            folder=self._folder.path,
            iterations=progress.iteration,
            epochs=progress.iteration // self._order.iterations_per_epoch,
            finished=progress.finished,
            stopped_by=stopped_by,
            best=dict(progress.best),
            best_epoch=dict(progress.best_epoch),
            evaluations={} if self._evaluation is None else dict(self._evaluation.results),
            skipped=len(progress.skipped),
        )

    def _open_folder(self, log_size: int) -> None:
        self._folder.prepare()
        self._reports.log = RunLog(self._folder.log, log_size)
        self._folder.describe(self._recipe, self._environment)
