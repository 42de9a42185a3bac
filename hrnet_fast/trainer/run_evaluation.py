"""``RunEvaluation``: evaluations between epochs, and the best weights."""

from __future__ import annotations

import time

import torch

from hrnet_fast.errors import ConfigError
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.random_states import kept_host_random_states
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.progress_state import RunProgress
from hrnet_fast.trainer.run_folder import RunFolder
from hrnet_fast.trainer.run_reports import RunReports
from hrnet_fast.trainer.sampler import TrainingOrder
from hrnet_fast.trainer.step_runner import StepRunner
from hrnet_fast.trainer.stop_requests import StopRequests
from hrnet_fast.trainer.task import TrainingTask


class StopRequestedError(Exception):
    """A request to stop, raised out of an evaluation."""


class RunEvaluation:
    """Evaluates the weights as trained and their average.

    Random states of the host are the same before and after: a resumed run may evaluate once more.

    Args:
        task: evaluates.
        every: epochs between two evaluations; the last epoch is always evaluated.
        runner: has the network and its average.
        reports, folder, progress: take results and the best weights.

    Attributes:
        results: of the last evaluation, by kind of weights.
    """

    def __init__(
        self,
        task: TrainingTask,
        every: int,
        order: TrainingOrder,
        runner: StepRunner,
        processes: Processes,
        requests: StopRequests,
        reports: RunReports,
        folder: RunFolder,
        progress: RunProgress,
    ) -> None:
        self._task, self._every, self._order, self._runner = task, every, order, runner
        self._processes, self._requests = processes, requests
        self._reports, self._folder, self._progress = reports, folder, progress
        self.results: dict[str, EvaluationResult] = {}

    def is_due(self) -> bool:
        """Whether the run is at the end of an epoch that is to be evaluated and was not."""
        progress = self._progress
        epoch, within = divmod(progress.iteration, self._order.iterations_per_epoch)
        if self._task.val is None or within or progress.iteration == progress.evaluated:
            return False
        return progress.iteration == self._order.iterations or epoch % self._every == 0

    def run(self) -> None:
        """Evaluate, record the results, and write the weights that are the best so far.

        Raises:
            StopRequestedError: a request to stop came, with one process. Nothing is recorded then.
            ConfigError: the figure that chooses the best weights is none of the evaluation's.
        """
        kinds = ("raw",) if self._runner.ema is None else ("raw", "ema")
        found: dict[str, tuple[EvaluationResult, float]] = {}
        try:
            for weights in kinds:
                begin = time.perf_counter()
                network = self._runner.network(weights).eval()
                self._processes.share_buffers(network)  # the files hold the first process's
                with kept_host_random_states(), torch.no_grad():
                    result = self._task.evaluate(network, self._processes.device, progress=self._evaluating)
                found[weights] = result, time.perf_counter() - begin
        finally:
            self._runner.model.train()
        for weights, (result, seconds) in found.items():
            self._record(weights, result, seconds)
        self._progress.evaluated = self._progress.iteration

    def _evaluating(self, done: int, total: int) -> None:
        if self._requests.received and self._processes.count == 1:
            raise StopRequestedError
        self._reports.evaluating(done, total)

    def _record(self, weights: str, result: EvaluationResult, seconds: float) -> None:
        progress, task = self._progress, self._task
        figures = self._processes.from_first(lambda: dict(result.figures))
        if task.best not in figures:
            raise ConfigError(f"evaluation.best={task.best!r} is no figure of this evaluation: {', '.join(figures)}.")
        self.results[weights] = result
        epoch = progress.iteration // self._order.iterations_per_epoch
        best = progress.is_better(weights, float(figures[task.best]), task.higher_is_better)
        if best:
            progress.best[weights], progress.best_epoch[weights] = float(figures[task.best]), epoch
            self.save_weights("best", weights)
        self._reports.write(
            "evaluation", epoch=epoch, iteration=progress.iteration, weights=weights, figures=figures, best=best,
            count=result.count, skipped=result.skipped, seconds=seconds,
        )  # fmt: skip

    def save_weights(self, name: str, weights: str) -> None:
        """Write the network's weights, ``"raw"`` or ``"ema"``, as ``name.pth`` or ``name_ema.pth``."""
        network = self._runner.network(weights)
        file = f"{name}.pth" if weights == "raw" else f"{name}_{weights}.pth"
        self._processes.from_first(lambda: self._folder.save_weights(file, network, network.state_dict()))
