"""``RecipeTask``: what the tasks of all recipes have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.datasets.image_warps import compiled_crops
from hrnet_fast.errors import ConfigError, InputError
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.keypoints.methods import NO_HEATMAPS
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.recipes.layouts import read_data
from hrnet_fast.recipes.model_options import network_config
from hrnet_fast.recipes.recipe import Recipe
from hrnet_fast.recipes.sections import EvaluationRecipe
from hrnet_fast.trainer.network import initialised, parameter_groups

# The main figure of each metric, which chooses the best checkpoint unless a recipe names another one.
_BEST = {"coco": "AP", "pckh": "mean@0.5", "nme": "nme", "miou": "miou", "top_k": "top1", "detection_ap": "AP"}
_ERRORS = ("nme", "failure", "rmse", "mean_error")


class RecipeTask(ABC):
    """Data, network, inputs, loss and evaluation of one recipe in one folder
    (:class:`~hrnet_fast.trainer.task.TrainingTask`).

    Args:
        recipe: what to train.
        data_folder: the folder of the data.
        device: on which batches, network and loss are.
        init: a checkpoint for the first weights, or None.

    Raises:
        ConfigError: the recipe does not fit the data.
        DatasetError: a list or a folder is missing or malformed.

    Attributes:
        train, val, collate, collate_crops, best, higher_is_better: as in that protocol.
        config: of the network.
        crops: what makes the inputs.
        evaluator: name of the function in :mod:`hrnet_fast.evaluation`.
    """

    train: Any
    val: Any
    collate: Callable[[Sequence[Any]], Any]
    collate_crops: Callable[..., Any] | None = None
    crops: Any
    evaluator: str

    def __init__(
        self,
        recipe: Recipe,
        data_folder: str | os.PathLike[str],
        device: torch.device,
        init: str | os.PathLike[str] | None,
    ) -> None:
        self.recipe, self.device, self.init = recipe, device, init
        self.folder = Path(data_folder)
        self.train, self.val = self._read_data()
        if len(self.train) < recipe.loop.batch_size and not recipe.loop.keep_last_batch:
            raise ConfigError(
                f"loop.batch_size={recipe.loop.batch_size} with loop.keep_last_batch=false, but there are "
                f"{len(self.train)} samples: no batch would be trained on. Lower the one or set the other."
            )
        self.config = self._network_config()
        metric = recipe.evaluation.metric
        self.best = recipe.evaluation.best or _BEST.get(metric) or self._first_threshold()
        self.higher_is_better = not self.best.startswith(_ERRORS)

    @property
    @abstractmethod
    def outputs(self) -> Sequence[str] | int:
        """The network's outputs: their names, or their number."""

    @property
    def keypoints(self) -> str:
        """The decoding method of the network's heatmaps, ``"none"`` for other maps."""
        return NO_HEATMAPS

    @abstractmethod
    def make_loss(self) -> nn.Module:
        """Return the loss on the task's device: ``loss(outputs, targets)``."""

    @abstractmethod
    def inputs(self, batch: Any, generator: torch.Generator) -> tuple[Any, Any]:
        """Return the network's input and the targets of a batch, on its device, without waiting for it.

        The input is images [N, 3, H, W], or the network's
        :class:`~hrnet_fast.training.training_iteration.Arguments`, which begin with them.
        """

    def make_model(self) -> nn.Module:
        """Return the network on a CPU with plain modules, random weights and those of `init`, in training mode."""
        model: nn.Module = initialised(self.random_network(), self.init)
        return model

    def random_network(self, impl: str = "reference") -> Any:
        """Return the network on a CPU with random weights; `impl` as in :class:`hrnet_fast.HRNet`."""
        model = HRNet(self.config, impl=impl)
        model.keypoints = self.keypoints
        return model

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the optimizer's groups: ``params``, ``lr`` and ``weight_decay`` of each."""
        return parameter_groups(model, self.recipe.optimizer)

    def evaluation(self) -> EvaluationRecipe:
        """Return the recipe's evaluation, completed from the data."""
        return self.recipe.evaluation

    def evaluator_arguments(self) -> tuple[Any, ...]:
        """Return the evaluator's arguments between the data set and the device."""
        return self.crops, self.evaluation()

    def evaluator_options(self) -> dict[str, Any]:
        """Return further arguments of the evaluator."""
        return {}

    def evaluate(
        self,
        network: Callable[[Tensor], Any],
        device: torch.device,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> EvaluationResult:
        """Evaluate a network in evaluation mode on `val`; with several processes, each on its part.

        Args:
            network: the model or an engine.
            device: on which the pictures are given to it.
            progress: called with the number of samples that are done, and of all.

        Raises:
            ConfigError: the recipe has no data for evaluation.
        """
        from hrnet_fast import evaluation

        if self.val is None:
            raise ConfigError("evaluate: the recipe has no data for evaluation; give data.val or data.hold_out.")
        recipe = self.recipe
        size = recipe.evaluation.batch_size or max(1, recipe.loop.batch_size // recipe.loop.accumulate)
        options = {"workers": recipe.data.workers, "batch_size": size, "progress": progress, **self.evaluator_options()}
        evaluator = getattr(evaluation, self.evaluator)
        result = evaluator(network, self.val, *self.evaluator_arguments(), device, **options)
        assert isinstance(result, EvaluationResult)
        return result

    def _crops_in_workers(self) -> bool:
        """Whether workers send crops in place of pictures: on a CPU, and where they have a quick operator for it."""
        return self.device.type == "cpu" or compiled_crops()

    def _check_best(self, figures: Collection[str]) -> None:
        """Refuse a figure that evaluations will not have, before training."""
        if self.best not in figures:
            raise ConfigError(f"evaluation.best={self.best!r}; accepted are {', '.join(sorted(figures))}.")

    def _network_config(self) -> Any:
        outputs = self.outputs
        return network_config(self.recipe.model, outputs if isinstance(outputs, int) else len(outputs))

    def _read_data(self) -> tuple[Any, Any]:
        """Return the training samples, and those for evaluation or None."""
        data = self.recipe.data
        train = read_data(data, "train", self.folder)
        if not data.hold_out:
            return train, None if data.val is None else read_data(data, "val", self.folder)
        pictures: dict[str, int] = {}
        numbers = [pictures.setdefault(train.picture(i), len(pictures)) for i in range(len(train))]
        held = [i for i, number in enumerate(numbers) if number % data.hold_out == data.hold_out - 1]
        if not held:
            raise ConfigError(f"data.hold_out={data.hold_out}, but there are {len(pictures)} pictures; give less.")
        kept = sorted(set(range(len(train))) - set(held))
        return train.subset(kept), train.subset(held)

    def _first_threshold(self) -> str:
        from hrnet_fast.metrics import PCK

        options = self.recipe.evaluation.metric_options
        try:
            metric = PCK(**{name: value for name, value in options.items() if name != "size"})
        except InputError as error:
            raise ConfigError(f"evaluation.metric_options: {error}") from error
        return f"pck@{metric.thresholds[0]:g}"
