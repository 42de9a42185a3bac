"""The region proposal network (Faster R-CNN, arXiv 1506.01497): its layers, proposals and losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from hrnet_fast.detection.anchors import Sizes, grid_anchors, usable_anchors
from hrnet_fast.detection.assignment import assign, sample
from hrnet_fast.detection.boxes import decode, encode, wide
from hrnet_fast.detection.config_parts import ProposalConfig, RPNConfig
from hrnet_fast.detection.layers import draw_normal
from hrnet_fast.detection.loss_terms import SPACING, box_delta_loss
from hrnet_fast.detection.operators import best_of_levels, suppress
from hrnet_fast.detection.results import ImageMeta, Regions, Target, sizes_of
from hrnet_fast.errors import InputError

Outputs = tuple[list[Tensor], list[Tensor]]


def map_sizes(maps: Sequence[Tensor]) -> Sizes:
    """Return (height, width) of each map."""
    return tuple((m.shape[-2], m.shape[-1]) for m in maps)


def rows(maps: Sequence[Tensor], width: int) -> Tensor:
    """Return maps [N, A * width, H, W] of all levels as [N, T, width], over levels, rows, columns and A.

    The result has float32 at least.
    """
    return wide(torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, width) for m in maps], dim=1))


class RPNHead(nn.Module):
    """The layers, which all levels share; keys as in mmdetection's ``rpn_head``.

    Takes the pyramid's levels and returns objectness logits [N, A, H, W] and box deltas [N, 4A, H, W] of each.
    """

    def __init__(self, in_channels: int, config: RPNConfig, legacy: bool = False) -> None:
        super().__init__()
        self.config = config
        self.legacy = legacy
        self.rpn_conv = nn.Conv2d(in_channels, config.channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(config.channels, config.anchors.per_cell, 1)
        self.rpn_reg = nn.Conv2d(config.channels, 4 * config.anchors.per_cell, 1)
        draw_normal(self, 0.01)

    def forward(self, levels: Sequence[Tensor]) -> Outputs:
        features = [relu(self.rpn_conv(level)) for level in levels]
        return [self.rpn_cls(f) for f in features], [self.rpn_reg(f) for f in features]

    @torch.no_grad()
    def proposals(self, outputs: Outputs, metas: Sequence[ImageMeta], config: ProposalConfig) -> Regions:
        """Return the proposals of all images, by image and descending score, in pixels of the network input."""
        logits, deltas = outputs
        sizes = map_sizes(logits)
        scores, deltas_of = rows(logits, 1)[..., 0].sigmoid(), rows(deltas, 4)
        counts = [m.shape[1] * m.shape[2] * m.shape[3] for m in logits]
        image, anchor, level, scores = best_of_levels(scores, counts, config.before_nms)
        anchors = grid_anchors(self.config.anchors, sizes, scores.dtype, scores.device, self.legacy)
        limits = sizes_of(metas, scores.device)[image]
        boxes = decode(anchors[anchor], deltas_of[image, anchor], self.config.stds, limits, self.legacy)
        # Nearly all are large enough: suppression goes over the others too, and nothing waits for their number.
        usable = (boxes[:, 2:] - boxes[:, :2] > config.least_size).all(dim=1) & (scores > -torch.inf)
        found = Regions(torch.where(usable[:, None], boxes, 0), image, torch.where(usable, scores, -torch.inf))
        return suppress(found, level, len(sizes), len(metas), config.nms_iou, config.per_image)

    def losses(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        metas: Sequence[ImageMeta],
        generator: torch.Generator | None,
    ) -> dict[str, list[Tensor]]:
        """Return ``loss_rpn_cls`` and ``loss_rpn_bbox``, each with one entry for each level.

        Raises:
            InputError: no anchor lies in an image, with ``allowed_border`` of 0 or more.
        """
        logits, deltas = outputs
        sizes = map_sizes(logits)
        scores, deltas_of = rows(logits, 1)[..., 0], rows(deltas, 4)
        anchors = grid_anchors(self.config.anchors, sizes, scores.dtype, scores.device, self.legacy)
        goals, taken, positive = torch.zeros_like(deltas_of), torch.zeros_like(scores), torch.zeros_like(scores)
        divisor = 0
        for i, (target, meta) in enumerate(zip(targets, metas, strict=True)):
            padded = meta.padded_size or meta.size
            border = self.config.allowed_border
            usable = usable_anchors(self.config.anchors, sizes, anchors, meta.size, padded, border).nonzero()[:, 0]
            if not len(usable):
                raise InputError(
                    f"Detector: no anchor lies in an image of {meta.size[0]}x{meta.size[1]}; take larger images, or "
                    "rpn.allowed_border=-1."
                )
            found = assign(anchors[usable], target, self.config.assign)
            positives, negatives = sample(found, self.config.sample, generator)
            divisor += max(len(positives), 1) + max(len(negatives), 1)
            objects, positives, negatives = found[positives], usable[positives], usable[negatives]
            goals[i, positives] = encode(anchors[positives], target.boxes[objects], self.config.stds, self.legacy)
            positive[i, positives] = 1
            taken[i, positives] = taken[i, negatives] = 1
        classes = (
            self.config.class_weight * binary_cross_entropy_with_logits(scores, positive, reduction="none") * taken
        )
        boxes = box_delta_loss(deltas_of, goals, self.config.box_loss) * positive[..., None]
        counts = [m.shape[1] * m.shape[2] * m.shape[3] for m in logits]
        return {
            name: [part.sum() / (divisor + SPACING) for part in torch.split(values, counts, dim=1)]
            for name, values in (("loss_rpn_cls", classes), ("loss_rpn_bbox", boxes))
        }
