"""Training of detectors: boxes, classes and masks of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.datasets import DetectionBatch, DetectionDataset, collate_detection
from hrnet_fast.detection import Detector, DetectorConfig, total_loss
from hrnet_fast.detection.detector import Losses
from hrnet_fast.detection.training_inputs import DetectionScaling
from hrnet_fast.errors import ConfigError
from hrnet_fast.evaluation.detection import check_detection_evaluation
from hrnet_fast.recipes.model_options import detector_config
from hrnet_fast.recipes.task_fields import make_inputs
from hrnet_fast.trainer.recipe_task import RecipeTask
from hrnet_fast.training.training_iteration import Arguments


def detection_loss(losses: Losses, targets: None = None) -> dict[str, Tensor]:
    """Return the sum of a detector's losses as ``"loss"``, and its entries, those with a number for each level summed.

    Args:
        losses: of :meth:`hrnet_fast.detection.Detector.losses`.
        targets: None: the detector has seen them.
    """
    named = {name: torch.stack(part).sum() if isinstance(part, list) else part for name, part in losses.items()}
    return {"loss": total_loss(losses), **named}


class DetectionTask(RecipeTask):
    """Objects in pictures; see :class:`~hrnet_fast.trainer.recipe_task.RecipeTask`.

    The boxes that a step trains on are drawn by the generator that draws its inputs, so that a resumed run repeats.

    Attributes:
        config: of the detector, with the pictures' size and statistics of ``inputs.picture``.
        crops: what makes the inputs.
    """

    evaluator = "evaluate_detection"
    config: DetectorConfig
    train: DetectionDataset
    val: DetectionDataset | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.collate = collate_detection
        if self.val is not None:
            self._check_best(check_detection_evaluation(self.val, self.config, self.evaluation()))

    @property
    def outputs(self) -> Sequence[str]:
        return self.train.names

    def make_loss(self) -> Any:
        """Return the sum of the detector's losses and their names.

        Raises:
            ConfigError: the detector is trained on masks or on classes of pixels, and the data is read without.
        """
        roi, train = self.config.roi, self.train
        masks, semantic = roi is not None and roi.mask is not None, roi is not None and roi.semantic is not None
        for name, lacking in {
            "masks: true": masks and not train.has_masks,
            "semantic": semantic and not train.has_maps,
        }.items():
            if lacking:
                raise ConfigError(
                    f"model.name={self.recipe.model.name}: is trained on more than boxes; give data.train {name}."
                )
        return detection_loss

    def random_network(self, impl: str = "reference") -> Detector:
        return Detector(self.config, impl=impl)

    def inputs(self, batch: DetectionBatch, generator: torch.Generator) -> tuple[Arguments, None]:
        """Return the arguments of a detector in training: images [N, 3, H, W], targets, sizes and a generator."""
        made = self.crops(batch, generator)
        return Arguments((made.images, made.targets, made.metas, generator)), None

    def _network_config(self) -> DetectorConfig:
        self.crops: DetectionScaling = make_inputs(self.recipe.task, self.recipe.inputs)
        return detector_config(self.recipe.model, len(self.train.names)).override(picture=self.crops.picture)

    def evaluator_arguments(self) -> tuple[Any, ...]:
        return (self.evaluation(),)

    def _read_data(self) -> tuple[DetectionDataset, DetectionDataset | None]:
        train, val = super()._read_data()
        if val is not None and val.names != train.names:
            given = f"data.val has {len(val.names)} classes and data.train {len(train.names)}, or of other names"
            raise ConfigError(f"{given}; give both the same classes.")
        return train, val
