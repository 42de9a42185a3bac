"""Training of keypoints of persons and animals, and of facial landmarks, as heatmaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.datasets import KeypointBatch, KeypointCrops, KeypointDataset, collate_keypoints
from hrnet_fast.errors import ConfigError, InputError
from hrnet_fast.evaluation.keypoints import check_keypoint_evaluation
from hrnet_fast.keypoints import mirror_order
from hrnet_fast.recipes.layouts import read_data
from hrnet_fast.recipes.sections import EvaluationRecipe
from hrnet_fast.recipes.task_fields import make_inputs
from hrnet_fast.trainer.recipe_task import RecipeTask
from hrnet_fast.training.losses import keypoint_mse, keypoint_ohkm, landmark_mse


class HeatmapLoss(nn.Module):
    """A loss of heatmaps as ``loss(heatmaps, (targets, weights))``.

    Args:
        kind: ``"keypoint_mse"``, ``"keypoint_ohkm"`` or ``"landmark_mse"``.
        weighted: multiply by the weights; ``"landmark_mse"`` never does.
        factor: on the loss of both others.
        top_k: of ``"keypoint_ohkm"``.
    """

    def __init__(self, kind: str, weighted: bool = True, factor: float = 1.0, top_k: int = 8) -> None:
        super().__init__()
        self.kind, self.weighted, self.factor, self.top_k = kind, weighted, factor, top_k

    def forward(self, heatmaps: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        maps, weights = targets
        if self.kind == "landmark_mse":
            return landmark_mse(heatmaps, maps)
        used = weights if self.weighted else None
        if self.kind == "keypoint_ohkm":
            return self.factor * keypoint_ohkm(heatmaps, maps, used, top_k=self.top_k)
        return self.factor * keypoint_mse(heatmaps, maps, used)


class KeypointTask(RecipeTask):
    """Keypoints as heatmaps; see :class:`~hrnet_fast.trainer.recipe_task.RecipeTask`.

    Attributes:
        crops: what makes the inputs. Mirrored pairs and the upper body are the data's unless the recipe gives them.
    """

    evaluator = "evaluate_keypoints"
    train: KeypointDataset
    val: KeypointDataset | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.collate = collate_keypoints
        self.crops: KeypointCrops = self._make_crops()
        if self._crops_in_workers():
            self.collate_crops = self.crops.collate
        height, width = self.crops.input_size
        expected = (height, width) if self.config.head.upsample_logits else (-(-height // 4), -(-width // 4))
        if self.crops.heatmap_size != expected:
            raise ConfigError(
                f"inputs.heatmap_size={list(self.crops.heatmap_size)}, but the network gives {list(expected)} for "
                f"inputs.input_size={list(self.crops.input_size)}."
            )
        if self.val is not None:
            self._check_best(check_keypoint_evaluation(self.val, self.crops, self.evaluation()))

    @property
    def outputs(self) -> Sequence[str]:
        return self.train.names

    @property
    def keypoints(self) -> str:
        return self.crops.method

    def make_loss(self) -> nn.Module:
        return HeatmapLoss(**self.recipe.loss).to(self.device)

    def inputs(self, batch: KeypointBatch, generator: torch.Generator) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return images [N, 3, H, W], and targets [N, K, h, w] with their weights [N, K]."""
        made = self.crops(batch, generator)
        return made.images, (made.targets, made.weights)

    def evaluation(self) -> EvaluationRecipe:
        """Return the recipe's evaluation, with files of the metric below the data folder."""
        evaluation = self.recipe.evaluation
        options = dict(evaluation.metric_options)
        for name in ("annotations", "head_boxes"):
            if name in options:
                options[name] = str(self.folder / str(options[name]))
        return dataclasses.replace(evaluation, metric_options=options)

    def _make_crops(self) -> KeypointCrops:
        given, data = self.recipe.inputs, self.train
        changes: dict[str, Any] = {}
        if given["flip_pairs"] is None:
            changes["flip_pairs"] = data.flip_pairs
        if not given["upper_body"]:
            changes["upper_body"] = data.upper_body
        crops = make_inputs(self.recipe.task, given, **changes)
        assert isinstance(crops, KeypointCrops)
        try:
            mirror_order(crops.flip_pairs or (), len(data.names))
        except InputError as error:
            raise ConfigError(f"inputs.flip_pairs, for {len(data.names)} keypoints: {error}") from error
        return crops

    def _read_data(self) -> tuple[KeypointDataset, KeypointDataset | None]:
        train, val = super()._read_data()
        data, detections = self.recipe.data, self.recipe.evaluation.detections
        if data.hold_out and self.recipe.evaluation.metric == "coco":
            raise ConfigError("data.hold_out with evaluation.metric: coco, which counts all annotations; take pck.")
        if detections is not None:
            if data.layout != "coco_keypoints" or data.val is None:
                raise ConfigError("evaluation.detections is for data.layout: coco_keypoints with data.val.")
            changed = dataclasses.replace(data, val={**data.val, "detections": detections})
            val = read_data(changed, "val", self.folder)
        if val is not None and val.names != train.names:
            given = f"{len(val.names)} keypoints in data.val and {len(train.names)} in data.train"
            raise ConfigError(f"{given}, or of other names; give the same ones.")
        return train, val
