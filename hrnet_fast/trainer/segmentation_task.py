"""Training of segmentation, with one output or with OCR's two."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.datasets import CollateSegmentation, SegmentationBatch, SegmentationCrops, SegmentationDataset
from hrnet_fast.errors import ConfigError
from hrnet_fast.evaluation.segmentation import check_segmentation_evaluation
from hrnet_fast.recipes.task_fields import make_inputs
from hrnet_fast.trainer.recipe_task import RecipeTask
from hrnet_fast.training.losses import AuxiliaryLoss, OHEMCrossEntropyLoss, PixelCrossEntropyLoss


class SegmentationTask(RecipeTask):
    """Classes of pixels; see :class:`~hrnet_fast.trainer.recipe_task.RecipeTask`.

    Attributes:
        crops: what makes the inputs. Classes that mirroring swaps are the data's unless the recipe gives them.
    """

    evaluator = "evaluate_segmentation"
    train: SegmentationDataset
    val: SegmentationDataset | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        given = self.recipe.inputs
        changes = {} if given["swapped_classes"] else {"swapped_classes": self.train.swapped_classes}
        self.crops: SegmentationCrops = make_inputs(self.recipe.task, given, **changes)
        self.collate = CollateSegmentation(self.train.ignore_label)
        if self._crops_in_workers():
            self.collate_crops = partial(self.crops.collate, ignore_label=self.train.ignore_label)
        if self.val is not None:
            self._check_best(check_segmentation_evaluation(self.val, self.evaluation()))

    @property
    def outputs(self) -> int:
        return self.train.num_classes

    def make_loss(self) -> nn.Module:
        """Return the loss of the logits and labels [N, H, W].

        Raises:
            ConfigError: another number of class weights than of classes, or of output weights than of outputs.
        """
        options = dict(self.recipe.loss)
        kind, outputs = options.pop("kind"), options.pop("output_weights")
        weights = options.pop("class_weights")
        if weights is not None and len(weights) != self.train.num_classes:
            raise ConfigError(f"loss.class_weights: {len(weights)} for {self.train.num_classes} classes; give as many.")
        common: dict[str, Any] = {
            "class_weights": None if weights is None else torch.tensor(weights),
            "ignore_label": self.train.ignore_label,
            "align_corners": self.config.align_corners,
        }
        needed = 2 if self.config.head.kind == "ocr" and self.config.head.ocr_outputs != "main" else None
        if (None if outputs is None else len(outputs)) != needed:
            raise ConfigError(
                f"loss.output_weights={None if outputs is None else list(outputs)}; this network has "
                f"{'two outputs: give two, such as [0.4, 1]' if needed else 'one output: remove it'}."
            )
        divide_by = options.pop("auxiliary_divide_by", "weights")
        hard = kind == "ohem_cross_entropy"
        loss: nn.Module = (OHEMCrossEntropyLoss if hard else PixelCrossEntropyLoss)(**common, **options)
        if outputs is not None:
            auxiliary = PixelCrossEntropyLoss(**common, divide_by=divide_by) if hard else None
            loss = AuxiliaryLoss(loss, auxiliary, outputs)
        return loss.to(self.device)

    def inputs(self, batch: SegmentationBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images [N, 3, H, W] and labels [N, H, W]."""
        made = self.crops(batch, generator)
        return made.images, made.labels

    def evaluator_options(self) -> dict[str, Any]:
        return {"align_corners": self.config.align_corners}

    def _read_data(self) -> tuple[SegmentationDataset, SegmentationDataset | None]:
        train, val = super()._read_data()
        if val is not None and val.num_classes != train.num_classes:
            given = f"data.val has {val.num_classes} classes, data.train {train.num_classes}"
            raise ConfigError(f"{given}; give one number.")
        return train, val
