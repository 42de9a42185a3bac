"""``TrainingRun``: the loop itself."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hrnet_fast.errors import ConfigError, HRNetFastError, TrainingError, some_of
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.random_states import kept_host_random_states, seed_host_generators
from hrnet_fast.recipes.recipe import Recipe
from hrnet_fast.trainer.batches import TrainingBatches
from hrnet_fast.trainer.callbacks import Callback
from hrnet_fast.trainer.loop import TrainingOutcome
from hrnet_fast.trainer.pending_losses import PendingLosses, UpdateLoss
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.progress_state import RunProgress
from hrnet_fast.trainer.random_state import random_state, restore_random_state
from hrnet_fast.trainer.records import RunLog, environment
from hrnet_fast.trainer.run_folder import RunFolder, check_same_recipe, recipe_data
from hrnet_fast.trainer.sampler import TrainingOrder, derived_seed
from hrnet_fast.trainer.schedule import Schedule
from hrnet_fast.trainer.step_runner import StepRunner
from hrnet_fast.trainer.stop_requests import StopRequests
from hrnet_fast.trainer.task import TrainingTask


class _StopRequestedError(Exception):
    """A request to stop, raised out of an evaluation."""


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
        self._callbacks, self._log_every = callbacks, log_every
        self._save_seconds, self._save_iterations = save_seconds, save_iterations
        loop = recipe.loop
        count = len(task.train)  # type: ignore[arg-type]
        self._order = TrainingOrder(count, loop, processes.count, processes.rank)
        self._schedule = Schedule(recipe.schedule, self._order.iterations_per_epoch, loop.epochs)
        folder = self._folder = processes.from_first(lambda: RunFolder(out, resume))
        state = folder.load() if resume else None
        if state is not None:
            check_same_recipe(folder.path, state["recipe"], recipe_data(recipe))
            self._check_samples(state)
        seed_host_generators(loop.seed)
        self._runner = StepRunner(task, recipe, processes)
        self._seed_steps(loop.seed)
        self._generator = torch.Generator()
        self._progress = RunProgress() if state is None else RunProgress(**state["progress"])
        self._note = ""
        if state is not None:
            self._runner.load_state(state)
            self._restore_random(state["random"])
        self._log: RunLog | None = None
        self._environment = environment(processes.device, processes.count)
        processes.from_first(lambda: self._open_folder(0 if state is None else state["log_size"]))
        self._resumed, self._stopped = resume, False
        self._losses = PendingLosses(processes.device)
        self._bad: UpdateLoss | None = None
        self._evaluations: dict[str, EvaluationResult] = {}
        self._batches: TrainingBatches | None = None
        self._window_seconds = self._window_waited = 0.0
        self._window_images = 0
        self._saved_at, self._saved_iteration = time.monotonic(), self._progress.iteration

    def run(self) -> TrainingOutcome:
        """Train to the end, or until a request to stop."""
        progress = self._progress
        if progress.finished:
            return self._outcome()
        self._write(self._start_record())
        try:
            if not progress.iteration:
                self._save()  # so that a disk that cannot be written is noticed at once
            stopped = self._evaluate_if_due()
            while not stopped and progress.iteration < self._order.iterations:
                stopped = self._update() or self._evaluate_if_due()
            return self._stop() if stopped else self._finish()
        except (Exception, KeyboardInterrupt) as error:
            self._write_stop(f"{type(error).__name__}: {error}")
            raise

    def close(self) -> None:
        """End workers, and close files."""
        if self._batches is not None:
            self._batches.close()
        if self._log is not None:
            self._log.close()
        for one in self._callbacks:
            one.close()

    # One update.

    def _update(self) -> bool:
        """Train on one global batch. Return whether a request to stop came instead."""
        progress, accumulate = self._progress, self._recipe.loop.accumulate
        begin = time.perf_counter()
        iteration = progress.iteration
        if self._batches is None:
            self._batches = TrainingBatches(
                self._task.train, self._task.collate, self._order, iteration, self._recipe.data.workers,
                self._processes.device,
            )  # fmt: skip
        saving = 0.0
        self._runner.set_rate(self._schedule.factor(iteration))
        for micro in range(accumulate):
            batch, error = self._next_batch(micro == 0)
            stop, save = self._agree(error, micro == 0)
            if stop:
                return True
            if save:
                saving -= time.perf_counter()
                self._save()
                saving += time.perf_counter()
            self._generator.manual_seed(self._order.augmentation_seed(iteration, micro))
            images, targets = self._task.inputs(batch, self._generator)
            loss = self._runner.run(images, targets, micro)
            self._losses.add(iteration, loss, batch, micro == accumulate - 1)
            self._batches.prefetch()
        progress.iteration += 1
        seconds = time.perf_counter() - begin - saving
        waited = self._batches.take_waited()
        progress.epoch_seconds += seconds
        progress.epoch_waited += waited
        self._window_seconds += seconds
        self._window_waited += waited
        self._window_images += self._order.share(iteration) * self._order.parts
        self._read_losses()
        for one in self._callbacks:
            one.iteration(progress.iteration, self._order.iterations)
        if progress.iteration % self._order.iterations_per_epoch == 0:
            self._close_epoch()
        return False

    def _next_batch(self, first: bool) -> tuple[Any, HRNetFastError | None]:
        """Return a batch, or why there is none; nothing where an update need not begin."""
        assert self._batches is not None
        if first and self._requests.received and self._processes.count == 1:
            return None, None
        try:
            batch = self._batches.next()
        except HRNetFastError as error:
            return None, error
        self._progress.add_skipped(batch.skipped)
        return batch, None

    def _agree(self, error: HRNetFastError | None, first: bool) -> tuple[bool, bool]:
        """Return whether to stop and whether to save, in all processes alike.

        Args:
            error: why this process has no batch.
            first: whether the update begins, so that stopping and saving are possible.

        Raises:
            DatasetError, TrainingError: a process has no batch, or a loss is not finite.
        """
        now = time.monotonic()
        due = first and self._processes.first and self._progress.iteration > self._saved_iteration
        due = due and (
            0 < self._save_seconds <= now - self._saved_at
            or 0 < self._save_iterations <= self._progress.iteration - self._saved_iteration
        )
        flags = [self._requests.received, error is not None, self._bad is not None, due]
        stop, failed, bad, save = self._processes.largest([float(flag) for flag in flags])
        if bad:
            self._raise_bad_loss()
        if stop and first:
            self._requests.received = int(stop)
            return True, False
        if failed:
            raise error or TrainingError("Another process of this run cannot read its data; its own message says why.")
        return False, bool(save)

    # Losses and records.

    def _read_losses(self, all_of_them: bool = False) -> None:
        """Take the losses that have arrived, and write the records that they complete."""
        for entry in self._losses.arrived(all_of_them=all_of_them):
            if self._bad is None and not math.isfinite(entry.value):
                self._bad = entry
            done = entry.iteration + 1
            self._progress.add_loss(entry.value)
            if done % self._log_every == 0 or done % self._order.iterations_per_epoch == 0:
                self._write_step(done)
        if self._processes.count == 1 and self._bad is not None:
            self._raise_bad_loss()

    def _raise_bad_loss(self) -> None:
        """Stop because of a loss that is not finite."""
        own = None if self._bad is None else (self._bad.iteration, self._bad.value, self._bad.files)
        found = [one for one in self._processes.gathered(own) if one is not None]
        iteration = min(one[0] for one in found)
        files = [name for one in found if one[0] == iteration for name in one[2]]
        value = next(one[1] for one in found if one[0] == iteration)
        epoch = iteration // self._order.iterations_per_epoch
        self._write_stop(f"the loss is {value}", iteration=iteration + 1, epoch=epoch + 1, files=files)
        raise TrainingError(
            f"The loss is {value} at iteration {iteration + 1} (epoch {epoch + 1}); its batch: {some_of(files, 64)}. "
            f"Look at these samples, lower the learning rate or warm it up. {self._folder.last} is the state of "
            f"iteration {self._saved_iteration}."
        )

    def _write_step(self, iteration: int) -> None:
        progress = self._progress
        local = [sum(progress.window) / len(progress.window), self._window_waited, self._window_seconds]
        loss, waited, seconds = self._processes.means(local)
        record = {
            "kind": "step",
            "iteration": iteration,
            "epoch": (iteration - 1) // self._order.iterations_per_epoch + 1,
            "loss": loss,
            "lr": self._recipe.optimizer.lr * self._schedule.factor(iteration - 1),
            "images_per_second": self._window_images / seconds if seconds else None,
            "wait_share": waited / seconds if seconds else None,
        }
        progress.window = []
        self._window_seconds = self._window_waited = 0.0
        self._window_images = 0
        self._write(record)

    def _close_epoch(self) -> None:
        """Write the record of an epoch."""
        progress, order = self._progress, self._order
        self._read_losses(all_of_them=True)
        self._agree_on_losses()
        count, images = order.iterations_per_epoch, order.samples - order.left_out
        loss, seconds, waited = self._processes.means(
            [progress.epoch_loss / count, progress.epoch_seconds, progress.epoch_waited]
        )
        for skipped in self._processes.gathered(progress.skipped):
            progress.skipped += [one for one in skipped if one not in progress.skipped]
        epoch = progress.iteration // count
        self._write(
            {
                "kind": "epoch",
                "epoch": epoch,
                "iteration": progress.iteration,
                "loss": loss,
                "seconds": seconds,
                "images_per_second": images / seconds if seconds else None,
                "wait_share": waited / seconds if seconds else None,
                "skipped": len(progress.skipped),
            }
        )
        progress.epoch_loss = progress.epoch_seconds = progress.epoch_waited = 0.0
        if self._runner.graphed is not None and epoch == 1:
            self._write({"kind": "note", "text": str(self._runner.graphed.explain())})

    def _agree_on_losses(self) -> None:
        if self._processes.largest([float(self._bad is not None)])[0]:
            self._raise_bad_loss()

    def _start_record(self) -> dict[str, Any]:
        order, runner = self._order, self._runner
        return {
            "kind": "start",
            "iteration": self._progress.iteration,
            "iterations": order.iterations,
            "iterations_per_epoch": order.iterations_per_epoch,
            "epochs": self._recipe.loop.epochs,
            "samples": order.samples,
            "left_out": order.left_out,
            "resumed": self._resumed,
            "note": self._note,
            "parameters": sum(p.numel() for p in runner.model.parameters()),
            "choices": runner.explain(),
            "environment": self._environment,
        }

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.write(record)
        for one in self._callbacks:
            one.record(record)

    def _write_stop(self, reason: str, **details: Any) -> None:
        """Write a record of why the run stops, once."""
        if not self._stopped:
            self._stopped = True
            with contextlib.suppress(OSError):  # the disk may be what the run stops for
                self._write({"kind": "stop", "iteration": self._progress.iteration, "reason": reason, **details})

    # Evaluation.

    def _evaluate_if_due(self) -> bool:
        """Evaluate at the end of an epoch. Return whether a request to stop came instead."""
        progress, per_epoch = self._progress, self._order.iterations_per_epoch
        epoch, within = divmod(progress.iteration, per_epoch)
        last = progress.iteration == self._order.iterations
        wanted = last or epoch % self._recipe.loop.evaluate_every == 0
        if self._task.val is None or within or progress.iteration == progress.evaluated or not wanted:
            return False
        self._save()
        networks = {"raw": self._runner.model}
        if self._runner.ema is not None:
            networks["ema"] = self._runner.ema.module
        results: dict[str, tuple[EvaluationResult, float]] = {}
        try:
            for weights, network in networks.items():
                begin = time.perf_counter()
                with kept_host_random_states(), torch.no_grad():
                    found = self._task.evaluate(network.eval(), self._processes.device, progress=self._evaluating)
                results[weights] = found, time.perf_counter() - begin
        except _StopRequestedError:
            return True
        finally:
            self._runner.model.train()
        for weights, (result, seconds) in results.items():
            self._evaluated(epoch, weights, result, seconds)
        progress.evaluated = progress.iteration
        self._save()
        return False

    def _evaluating(self, done: int, total: int) -> None:
        if self._requests.received and self._processes.count == 1:
            raise _StopRequestedError
        for one in self._callbacks:
            one.evaluation(done, total)

    def _evaluated(self, epoch: int, weights: str, result: EvaluationResult, seconds: float) -> None:
        """Record a result, and keep the weights if they are the best."""
        progress, task = self._progress, self._task
        figures = self._processes.from_first(lambda: dict(result.figures))
        if task.best not in figures:
            raise ConfigError(f"evaluation.best={task.best!r} is no figure of this evaluation: {', '.join(figures)}.")
        self._evaluations[weights] = result
        best = progress.is_better(weights, float(figures[task.best]), task.higher_is_better)
        if best:
            progress.best[weights], progress.best_epoch[weights] = float(figures[task.best]), epoch
            self._save_weights("best", weights)
        self._write(
            {
                "kind": "evaluation",
                "epoch": epoch,
                "iteration": progress.iteration,
                "weights": weights,
                "figures": figures,
                "best": best,
                "count": result.count,
                "skipped": result.skipped,
                "seconds": seconds,
            }
        )

    # Checkpoints.

    def _save(self) -> None:
        """Write ``last.pt``, unless a loss or the weights are not finite."""
        self._read_losses(all_of_them=True)
        self._agree_on_losses()
        random = self._processes.gathered(random_state(self._processes.device))

        def write() -> None:
            bad = self._runner.not_finite()
            if bad:
                raise TrainingError(
                    f"Weights or statistics are not finite at iteration {self._progress.iteration}, while all losses are: "
                    f"{some_of(bad)}. {self._folder.last} is the state of iteration {self._saved_iteration}."
                )
            assert self._log is not None
            self._folder.save(
                {
                    "recipe": recipe_data(self._recipe),
                    "samples": self._order.samples,
                    "progress": self._progress.data(),
                    "random": random,
                    "log_size": self._log.size(),
                    **self._runner.state(),
                }
            )

        self._processes.from_first(write)
        self._saved_at, self._saved_iteration = time.monotonic(), self._progress.iteration

    def _save_weights(self, name: str, weights: str) -> None:
        """Write the network's own weights, or their average's."""
        ema = self._runner.ema
        network = self._runner.model if weights == "raw" or ema is None else ema.module
        file = f"{name}.pth" if weights == "raw" else f"{name}_{weights}.pth"
        self._processes.from_first(lambda: self._folder.save_weights(file, network, network.state_dict()))

    def _finish(self) -> TrainingOutcome:
        self._save_weights("final", "raw")
        if self._runner.ema is not None:
            self._save_weights("final", "ema")
        graph = None if self._runner.graphed is None else str(self._runner.graphed.explain())
        self._write({"kind": "end", "iteration": self._progress.iteration, "best": self._progress.best, "graph": graph})
        self._progress.finished = True
        self._save()
        return self._outcome()

    def _stop(self) -> TrainingOutcome:
        """Save, and stop as was asked."""
        self._read_losses(all_of_them=True)
        self._agree_on_losses()
        name = signal.Signals(self._requests.received).name
        self._write_stop(name)
        self._save()
        return self._outcome(name)

    def _outcome(self, stopped_by: str = "") -> TrainingOutcome:
        progress = self._progress
        return TrainingOutcome(
            self._folder.path, progress.iteration, progress.iteration // self._order.iterations_per_epoch,
            progress.finished, stopped_by, dict(progress.best), dict(progress.best_epoch), dict(self._evaluations),
            len(progress.skipped),
        )  # fmt: skip

    # Beginning and resumption.

    def _open_folder(self, log_size: int) -> None:
        if not self._progress.finished:
            self._folder.prepare(self._recipe, self._environment)
            self._log = RunLog(self._folder.log, log_size)

    def _check_samples(self, state: Mapping[str, Any]) -> None:
        if state["samples"] != self._order.samples:
            raise ConfigError(
                f"train: the run in {self._folder.path} has {state['samples']} training samples, the data here has "
                f"{self._order.samples}; resume it with its own data."
            )

    def _seed_steps(self, seed: int) -> None:
        """Seed what steps draw from, dropout for instance; each process otherwise."""
        own = derived_seed(seed, "steps", self._processes.rank)
        seed_host_generators(own)
        if self._processes.device.type == "cuda":
            torch.cuda.default_generators[self._processes.device.index].manual_seed(own)

    def _restore_random(self, states: list[dict[str, Any]]) -> None:
        if len(states) == self._processes.count:
            restore_random_state(states[self._processes.rank], self._processes.device)
        else:
            self._note = (
                f"the run had {len(states)} processes and goes on with {self._processes.count}: the random numbers of "
                "dropout begin anew"
            )
