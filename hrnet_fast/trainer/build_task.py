"""``build_task``: a recipe and a folder of data as a training task."""

from __future__ import annotations

import os

import torch

from hrnet_fast.checks import check_device, check_path
from hrnet_fast.errors import ConfigError, shown
from hrnet_fast.recipes.recipe import Recipe
from hrnet_fast.trainer.classification_task import ClassificationTask
from hrnet_fast.trainer.detection_task import DetectionTask
from hrnet_fast.trainer.keypoint_task import KeypointTask
from hrnet_fast.trainer.recipe_task import RecipeTask
from hrnet_fast.trainer.segmentation_task import SegmentationTask

_TASKS: dict[str, type[RecipeTask]] = {
    "pose": KeypointTask,
    "landmarks": KeypointTask,
    "segmentation": SegmentationTask,
    "classification": ClassificationTask,
    "detection": DetectionTask,
}


def build_task(
    recipe: Recipe,
    data_folder: str | os.PathLike[str],
    *,
    device: str | torch.device,
    init: str | os.PathLike[str] | None = None,
) -> RecipeTask:
    """Return the data, network, inputs, loss and evaluation of a recipe in a folder.

    Args:
        recipe: of :func:`hrnet_fast.recipes.get_recipe`.
        data_folder: the folder in which the recipe's ``data`` is.
        device: on which batches, network and loss are.
        init: a checkpoint of any family for the first weights: all layers that fit where it is the same network, its
            trunk otherwise. None: random weights.

    Raises:
        ConfigError: the recipe does not fit the data.
        DatasetError: a list or a folder is missing or malformed.
        InputError: another argument is invalid.
    """
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"build_task: {shown(recipe)} given; accepted is a Recipe (get_recipe).")
    folder = check_path("build_task", data_folder)
    if init is not None:
        check_path("build_task", init)
    return _TASKS[recipe.task](recipe, folder, check_device("build_task", device), init)
