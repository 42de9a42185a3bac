"""The box head of a stage: its layers, losses, refinement of boxes, and the final selection of detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from hrnet_fast.detection.assignment import Sample
from hrnet_fast.detection.boxes import decode, encode
from hrnet_fast.detection.head_configs import BoxStageConfig, RoIConfig
from hrnet_fast.detection.loss_terms import SPACING, accuracy, box_delta_loss
from hrnet_fast.detection.operators import suppress
from hrnet_fast.detection.results import Regions


class BoxHead(nn.Module):
    """The layers; keys as in mmdetection's ``Shared2FCBBoxHead``.

    Takes pooled regions [K, C, S, S] and returns class logits [K, classes + 1], the background last, and box deltas
    [K, 4 * classes], or [K, 4] if all classes share them.
    """

    def __init__(
        self, in_channels: int, pool_size: int, num_classes: int, config: BoxStageConfig, legacy: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.legacy = legacy
        self.num_classes = num_classes
        width = config.fc_channels
        self.fc_cls = nn.Linear(width, num_classes + 1)
        self.fc_reg = nn.Linear(width, 4 if config.class_agnostic else 4 * num_classes)
        first = in_channels * pool_size**2
        self.shared_fcs = nn.ModuleList(nn.Linear(width if i else first, width) for i in range(config.num_fcs))
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        for shared in self.shared_fcs:
            nn.init.xavier_uniform_(shared.weight)  # type: ignore[arg-type]
            nn.init.zeros_(shared.bias)  # type: ignore[arg-type]

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        x = pooled.flatten(1)
        for layer in self.shared_fcs:
            x = relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x)

    def deltas_of(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Return the deltas [K, 4] of one class for each row of what :meth:`forward` returned."""
        if self.config.class_agnostic:
            return deltas
        return deltas.view(len(deltas), self.num_classes, 4)[torch.arange(len(deltas), device=labels.device), labels]

    def losses(self, logits: Tensor, deltas: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return ``loss_cls``, ``acc`` (a percentage) and ``loss_bbox`` of the samples of all images."""
        labels = torch.cat([s.labels for s in samples])
        positives = (labels < self.num_classes).nonzero()[:, 0]
        boxes = torch.cat([s.positive_boxes for s in samples])
        goals = encode(boxes, torch.cat([s.goals for s in samples]), self.config.stds, self.legacy)
        given = self.deltas_of(deltas[positives], labels[positives])
        number = len(labels)
        classes = cross_entropy(logits, labels, reduction="sum")
        return {
            "loss_cls": self.config.class_weight * classes / (max(number, 1) + SPACING),
            "acc": accuracy(logits.detach(), labels),
            "loss_bbox": box_delta_loss(given, goals, self.config.box_loss).sum() / (max(number, 1) + SPACING),
        }

    def refine(self, boxes: Tensor, logits: Tensor, deltas: Tensor, sizes: Tensor, labels: Tensor | None) -> Tensor:
        """Return boxes [K, 4] moved by the deltas of their class, and clipped to their images' `sizes` [K, 2].

        Args:
            labels: of the boxes, [K]; where they are the background or unknown, the class of the largest logit counts.
        """
        best = logits[:, :-1].argmax(dim=1)
        if labels is not None:
            best = torch.where(labels == self.num_classes, best, labels)
        return decode(boxes, self.deltas_of(deltas, best), self.config.stds, sizes, self.legacy)


def select_detections(boxes: Tensor, scores: Tensor, image: Tensor, images: int, config: RoIConfig) -> Regions:
    """Return the detections of all images, by image and descending score.

    Args:
        boxes: of each class [K, classes, 4], or [K, 1, 4] for all.
        scores: [K, classes + 1], the background last.
        image: index of each row's image [K].
        images: their number.
        config: thresholds.
    """
    classes = scores.shape[1] - 1
    row, label = (scores[:, :-1] > config.score_threshold).nonzero(as_tuple=True)
    candidates = Regions(boxes.expand(-1, classes, -1)[row, label], image[row], scores[row, label], label)
    return suppress(candidates, label, classes, images, config.nms_iou, config.per_image)
