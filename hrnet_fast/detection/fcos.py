"""FCOS, the one-stage detector without anchors (arXiv 1904.01355): its layers, detections and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from hrnet_fast.detection.anchors import grid_points
from hrnet_fast.detection.boxes import areas, clip, wide
from hrnet_fast.detection.head_configs import FCOSConfig
from hrnet_fast.detection.layers import conv_tower, draw_normal
from hrnet_fast.detection.loss_terms import SPACING, focal_loss, iou_loss, mean_over_processes
from hrnet_fast.detection.operators import best_of_levels, suppress
from hrnet_fast.detection.results import ImageMeta, Regions, Target, scales_of, sizes_of
from hrnet_fast.detection.rpn import map_sizes, rows

Outputs = tuple[list[Tensor], list[Tensor], list[Tensor]]


class Scale(nn.Module):
    """Multiplication by a learned number ``scale``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Return the boxes [..., 4] whose left, top, right and bottom sides have these distances from points [..., 2]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


class FCOSHead(nn.Module):
    """The layers, which all levels share; keys as in mmdetection's ``bbox_head``.

    Takes the pyramid's levels and returns class logits [N, C, H, W], distances to the box's sides [N, 4, H, W] and
    centerness logits [N, 1, H, W] of each.
    """

    def __init__(self, in_channels: int, num_classes: int, config: FCOSConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.cls_convs = conv_tower(in_channels, config.channels, config.num_convs, config.groups)
        self.reg_convs = conv_tower(in_channels, config.channels, config.num_convs, config.groups)
        self.conv_cls = nn.Conv2d(config.channels, num_classes, 3, padding=1)
        self.conv_reg = nn.Conv2d(config.channels, 4, 3, padding=1)
        self.conv_centerness = nn.Conv2d(config.channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in config.strides)
        draw_normal(self, 0.01)
        nn.init.constant_(self.conv_cls.bias, -math.log(99))  # type: ignore[arg-type]  # probabilities start at 0.01

    def forward(self, levels: Sequence[Tensor]) -> Outputs:
        logits, distances, centers = [], [], []
        for level, scale in zip(levels, self.scales, strict=True):
            features, box_features = level, level
            for conv in self.cls_convs:
                features = conv(features)
            for conv in self.reg_convs:
                box_features = conv(box_features)
            logits.append(self.conv_cls(features))
            centers.append(self.conv_centerness(features))
            distances.append(wide(scale(self.conv_reg(box_features))).exp())
        return logits, distances, centers

    @torch.no_grad()
    def detect(self, outputs: Outputs, metas: Sequence[ImageMeta], rescale: bool) -> Regions:
        """Return the detections of all images, by image and descending score.

        Args:
            outputs: of :meth:`forward`.
            metas: sizes of the images.
            rescale: whether boxes are in pixels of the pictures, instead of the network input.
        """
        logits, distances, centers = outputs
        config, classes = self.config, self.num_classes
        sizes = map_sizes(logits)
        shares = rows(logits, classes).sigmoid()
        counts = [height * width * classes for height, width in sizes]
        passing = shares.masked_fill(~(shares > config.score_threshold), -torch.inf)
        image, entry, _, best = best_of_levels(passing.flatten(1), counts, config.before_nms)
        point, label = entry // classes, entry % classes
        points, _ = grid_points(config.strides, sizes, shares.dtype, shares.device)
        boxes = boxes_around(points[point], rows(distances, 4)[image, point])
        boxes = clip(boxes, sizes_of(metas, boxes.device)[image])
        if rescale:
            boxes = boxes / scales_of(metas, boxes)[image]
        scores = shares[image, point, label] * rows(centers, 1)[image, point, 0].sigmoid()
        usable = (boxes[:, 2:] - boxes[:, :2] > config.least_size).all(dim=1) & (best > -torch.inf)
        chosen = usable.nonzero()[:, 0]  # few of them, as a rule
        label = label[chosen]
        candidates = Regions(boxes[chosen], image[chosen], scores[chosen], label)
        return suppress(candidates, label, classes, len(metas), config.nms_iou, config.per_image)

    def losses(self, outputs: Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return ``loss_cls``, ``loss_bbox`` and ``loss_centerness``."""
        logits, distances, centers = outputs
        config = self.config
        points, level = grid_points(config.strides, map_sizes(logits), distances[0].dtype, logits[0].device)
        found = [self._targets(points, level, target) for target in targets]
        labels, goals = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
        positives = (labels < self.num_classes).nonzero()[:, 0]
        # mmdetection adds the spacing to this number in float32, where it changes numbers below 2 alone.
        divisor = mean_over_processes(points.new_tensor(len(positives), dtype=torch.float32)).clamp(min=1) + SPACING
        classes = focal_loss(
            rows(logits, self.num_classes).flatten(0, 1), labels, config.focal_alpha, config.focal_gamma
        )
        goals = goals[positives]
        between = goals[:, ::2], goals[:, 1::2]  # horizontal and vertical distances
        centerness = torch.stack([d.amin(dim=1) / d.amax(dim=1) for d in between]).prod(dim=0).sqrt()
        points = points.repeat(len(targets), 1)[positives]
        boxes = boxes_around(points, rows(distances, 4).flatten(0, 1)[positives])
        box_losses = iou_loss(boxes, boxes_around(points, goals)) * centerness
        total = mean_over_processes(centerness.sum()).clamp(min=1e-6)
        center_logits = rows(centers, 1).flatten()[positives]
        return {
            "loss_cls": config.class_weight * classes.sum() / divisor,
            "loss_bbox": config.box_weight * box_losses.sum() / (total + SPACING),
            "loss_centerness": config.centerness_weight
            * binary_cross_entropy_with_logits(center_logits, centerness, reduction="sum")
            / divisor,
        }

    def _targets(self, points: Tensor, level: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Return each point's class [T], ``num_classes`` for the background, and distances to its box's sides [T, 4].

        A point belongs to the smallest of the boxes that it lies in and whose farthest side is in its level's range.
        """
        if len(target.boxes) == 0:
            background = torch.full((len(points),), self.num_classes, device=points.device)
            return background, points.new_zeros(len(points), 4)
        boxes = target.boxes[None]
        distances = torch.cat([points[:, None] - boxes[..., :2], boxes[..., 2:] - points[:, None]], dim=-1)
        most = distances.amax(dim=-1)
        bounds = points.new_tensor([-1, *self.config.ranges, 1e8])
        inside = distances.amin(dim=-1) > 0
        inside &= (most >= bounds[level][:, None]) & (most <= bounds[level + 1][:, None])
        area = areas(boxes).expand(len(points), -1).masked_fill(~inside, torch.inf)
        least, index = area.min(dim=1)
        labels = torch.where(least.isinf(), self.num_classes, target.labels[index])
        return labels, distances[torch.arange(len(points), device=points.device), index]
