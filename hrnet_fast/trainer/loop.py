"""``train``: a run of the training loop, from its first step or from its last checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hrnet_fast.checks import check_bool, check_integer, check_number, check_path
from hrnet_fast.datasets.picture_cache import PictureCache, opened_cache
from hrnet_fast.datasets.skipping import AnnotatedImages
from hrnet_fast.errors import ConfigError, InputError, shown
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.random_states import kept_host_random_states
from hrnet_fast.recipes.recipe import LoopRecipe, Recipe
from hrnet_fast.trainer.callbacks import Callback
from hrnet_fast.trainer.processes import joined_processes
from hrnet_fast.trainer.stop_requests import StopRequests
from hrnet_fast.trainer.task import TrainingTask


@dataclass(frozen=True)
class TrainingOutcome:
    """What :func:`train` did.

    Attributes:
        folder: the run's.
        iterations, epochs: updates and whole epochs done, those before a resumption included.
        finished: whether the run is complete; otherwise it can be resumed.
        stopped_by: ``"SIGTERM"`` or ``"SIGINT"`` where a request ended it, otherwise "".
        best, best_epoch: the best figure so far and its epoch, by kind of weights: ``"raw"``, ``"ema"``.
        evaluations: the last results of this call, by kind of weights; empty where nothing was evaluated.
        skipped: broken samples that were left out.
    """

    folder: Path
    iterations: int
    epochs: int
    finished: bool
    stopped_by: str
    best: Mapping[str, float]
    best_epoch: Mapping[str, int]
    evaluations: Mapping[str, EvaluationResult]
    skipped: int

    @property
    def exit_code(self) -> int:
        """A process's exit code: 0; 143 behind SIGTERM and 130 behind Ctrl-C, as shells report these signals."""
        return {"SIGTERM": 143, "SIGINT": 130}.get(self.stopped_by, 0)


def train(
    task: TrainingTask,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    log_every: int = 50,
    save_seconds: float = 600.0,
    save_iterations: int = 0,
) -> TrainingOutcome:
    """Train the network of a task, and keep its records and checkpoints in a folder.

    With several processes, started by ``torchrun``, each calls this with the same arguments, and the first one writes.
    The folder must be on a file system that all of them see.

    A resumed run continues to the bit where its last checkpoint was written, in the middle of an epoch too; on CUDA
    devices, with ``loop.deterministic``.

    Args:
        task: data, network, inputs, loss and evaluation.
        recipe: the loop, the optimizer and the schedule.
        out: the run's folder. It is made; it may not have a run, unless `resume` is True.
        device: ``"cpu"``, ``"cuda"`` or a device's name.
        resume: continue the run in `out`; its recipe must be this one, workers, cache and evaluation apart.
        callbacks: receive records and progress.
        log_every: updates between two records of the loss.
        save_seconds, save_iterations: time and updates between two checkpoints within an epoch; 0 has none. There is
            one behind each evaluation and when the run stops in any case.

    Returns:
        What was done. A run that SIGTERM or Ctrl-C stopped has saved its state. A second Ctrl-C raises
        ``KeyboardInterrupt`` at once; the last checkpoint is whole then.

    Raises:
        InputError: `out` has a run and `resume` is False, or has none and it is True; or another argument is invalid.
        ConfigError: the recipe cannot be trained here, or is not the run's.
        CheckpointError: a checkpoint cannot be read or written, or a resumed run has lost it.
        DatasetError: a sample cannot be read; the message names its file.
        TrainingError: the loss or the weights are not finite, or a process of the run failed.
    """
    from hrnet_fast.trainer.run import TrainingRun

    if not isinstance(recipe, Recipe):
        raise ConfigError(f"train: recipe is {shown(recipe)}; accepted is a Recipe.")
    if not all(isinstance(one, Callback) for one in callbacks):
        raise InputError(f"train: callbacks={shown(callbacks)}; accepted is a sequence of Callback objects.")
    folder = check_path("train", out)
    check_bool("train", resume=resume)
    check_integer("train", "log_every", log_every)
    check_integer("train", "save_iterations", save_iterations, least=0)
    check_number("train", "save_seconds", save_seconds)
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(joined_processes(device, recipe.loop.graph == "on"))
        stack.enter_context(kept_host_random_states())
        stack.enter_context(_process_settings(recipe.loop, processes.device))
        requests = stack.enter_context(StopRequests())
        cache = stack.enter_context(opened_cache(recipe.data.cache_bytes, recipe.data.cache_folder, folder))
        stack.enter_context(_cached_samples(task, cache))
        run = TrainingRun(
            task, recipe, folder, processes, requests, callbacks if processes.first else (),
            resume=resume, log_every=log_every, save_seconds=save_seconds, save_iterations=save_iterations,
        )  # fmt: skip
        stack.callback(run.close)
        return run.run()


@contextlib.contextmanager
def _cached_samples(task: TrainingTask, cache: PictureCache | None) -> Iterator[None]:
    """Let the task's data sets read through a cache.

    Raises:
        ConfigError: a data set has none.
    """
    if cache is None:
        yield
        return
    samples: list[AnnotatedImages[Any]] = []
    for one in (task.train, task.val):
        if isinstance(one, AnnotatedImages):
            samples.append(one)
        elif one is not None:
            raise ConfigError(f"data.cache: {type(one).__name__} reads its pictures itself; leave data.cache off.")
    try:
        for one in samples:
            one.cache = cache
        yield
    finally:
        for one in samples:
            one.cache = None


@contextlib.contextmanager
def _process_settings(loop: LoopRecipe, device: torch.device) -> Iterator[None]:
    """Set PyTorch's flags for a run, and put them back: deterministic algorithms, or cuDNN's search for fast ones."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if loop.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch refuses cuBLAS without it
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not loop.deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
