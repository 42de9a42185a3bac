"""The second part of a two-stage detector: one box stage or a cascade of them, with masks and a semantic branch.

One stage is Faster and Mask R-CNN (arXiv 1506.01497, 1703.06870), several are Cascade R-CNN (1712.00726), and
interleaved ones Hybrid Task Cascade (1901.07518).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, softmax

from hrnet_fast.detection.assignment import Sample, sample_regions
from hrnet_fast.detection.box_head import BoxHead, select_detections
from hrnet_fast.detection.boxes import decode, wide
from hrnet_fast.detection.head_configs import RoIConfig
from hrnet_fast.detection.mask_head import MaskHead, mask_loss, of_class, paste_masks
from hrnet_fast.detection.operators import pool_regions
from hrnet_fast.detection.results import Detections, ImageMeta, Regions, Target, scales_of, sizes_of
from hrnet_fast.detection.semantic_head import SemanticHead


class RoIHead(nn.Module):
    """Box, mask and semantic heads; keys as in mmdetection's ``roi_head``.

    A single stage's heads are registered as ``bbox_head`` and ``mask_head``, those of a cascade as lists of that name.

    Args:
        in_channels: of the pyramid's levels.
        levels: of the pyramid.
        num_classes: without the background.
        config: of the heads.
        legacy: of :class:`DetectorConfig`.
    """

    def __init__(
        self, in_channels: int, levels: int, num_classes: int, config: RoIConfig, legacy: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.legacy = legacy
        self.num_classes = num_classes
        boxes = [BoxHead(in_channels, config.pool_size, num_classes, stage, legacy) for stage in config.stages]
        self.bbox_head = boxes[0] if len(boxes) == 1 else nn.ModuleList(boxes)
        if config.mask is not None:
            flow = config.mask.information_flow
            masks = [MaskHead(in_channels, num_classes, config.mask, flow and i > 0) for i in range(len(boxes))]
            self.mask_head = masks[0] if len(masks) == 1 else nn.ModuleList(masks)
        if config.semantic is not None:
            self.semantic_head = SemanticHead(in_channels, levels, config.semantic)

    @property
    def box_heads(self) -> list[BoxHead]:
        return _listed(self.bbox_head)

    @property
    def mask_heads(self) -> list[MaskHead]:
        return _listed(self.mask_head) if self.config.mask is not None else []

    def box_outputs(
        self, stage: int, levels: Sequence[Tensor], regions: Regions, semantic: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the class logits and box deltas of a stage for the regions' boxes, in float32 at least."""
        pooled = self._pool(levels, regions, self.config.pool_size, semantic)
        logits, deltas = self.box_heads[stage](pooled)
        return wide(logits), wide(deltas)

    def mask_outputs(self, levels: Sequence[Tensor], regions: Regions, semantic: Tensor | None) -> list[Tensor]:
        """Return the mask logits of each stage for the regions' boxes, which are pooled once."""
        config = self.config.mask
        assert config is not None
        pooled = self._pool(levels, regions, config.pool_size, semantic)
        found, before = [], None
        for head in self.mask_heads:
            logits, features = head(pooled, before)
            before = features if config.information_flow else None
            found.append(wide(logits))
        return found

    def _pool(self, levels: Sequence[Tensor], regions: Regions, size: int, semantic: Tensor | None) -> Tensor:
        config, (boxes, image) = self.config, (regions.boxes, regions.image)
        used = levels[: len(config.strides)]
        pooled = pool_regions(used, config.strides, boxes, image, size, config.finest_size, self.legacy)
        if semantic is None:
            return pooled
        assert config.semantic is not None
        stride = config.strides[0] * 2**config.semantic.level
        added = pool_regions(
            [semantic], [stride], boxes, image, config.semantic.pool_size, config.finest_size, self.legacy
        )
        return pooled + (added if added.shape == pooled.shape else adaptive_avg_pool2d(added, size))

    @torch.no_grad()
    def detect(
        self, levels: Sequence[Tensor], proposals: Regions, metas: Sequence[ImageMeta], rescale: bool
    ) -> list[Detections]:
        """Return the detections of each image.

        Args:
            levels: of the pyramid.
            proposals: of all images.
            metas: sizes of the images.
            rescale: whether boxes and masks are in pixels of the pictures, instead of the network input.
        """
        semantic = self.semantic_head(levels)[1] if self.config.semantic is not None else None
        found = self._boxes(levels, proposals, metas, semantic, rescale and self.config.mask is None)
        masks: list[Tensor] | list[None] = [None] * len(metas)
        if self.config.mask is not None:
            masks, found = self._masks(levels, found, metas, semantic, rescale)
        counts = found.counts
        assert found.scores is not None
        assert found.labels is not None
        parts = (*(torch.split(one, counts) for one in (found.boxes, found.scores, found.labels)), masks)
        return [Detections(*one) for one in zip(*parts, strict=True)]

    def _boxes(
        self,
        levels: Sequence[Tensor],
        proposals: Regions,
        metas: Sequence[ImageMeta],
        semantic: Tensor | None,
        rescale: bool,
    ) -> Regions:
        image = proposals.image
        sizes = sizes_of(metas, image.device)[image]
        boxes, total = proposals.boxes, None
        for stage, head in enumerate(self.box_heads):
            logits, deltas = self.box_outputs(stage, levels, Regions(boxes, image), semantic)
            total = logits if total is None else total + logits
            if stage + 1 < len(self.box_heads):
                boxes = head.refine(boxes, logits, deltas, sizes, None)
        assert total is not None
        scores = softmax(total / len(self.box_heads), dim=1)
        deltas = deltas.view(len(boxes), deltas.shape[1] // 4, 4)
        boxes = decode(boxes[:, None], deltas, head.config.stds, sizes[:, None], self.legacy)
        if rescale:
            boxes = boxes / scales_of(metas, boxes)[image][:, None]
        return select_detections(boxes, scores, image, len(metas), self.config)

    def _masks(
        self,
        levels: Sequence[Tensor],
        found: Regions,
        metas: Sequence[ImageMeta],
        semantic: Tensor | None,
        rescale: bool,
    ) -> tuple[list[Tensor], Regions]:
        """Return the masks of each image's detections, and these with their boxes in the pixels of the masks."""
        assert self.config.mask is not None
        assert found.labels is not None
        logits = self.mask_outputs(levels, found, semantic)
        # The masks of a cascade are averaged; with information flow the last head has seen the others' features.
        used = logits[-1:] if self.config.mask.information_flow else logits
        shares = of_class(torch.stack([one.sigmoid() for one in used]).mean(dim=0), found.labels)
        boxes = found.boxes / scales_of(metas, found.boxes)[found.image] if rescale else found.boxes
        counts = found.counts
        masks = [
            paste_masks(part, box, _canvas(meta, rescale), self.config.mask_threshold)
            for part, box, meta in zip(torch.split(shares, counts), torch.split(boxes, counts), metas, strict=True)
        ]
        return masks, dataclasses.replace(found, boxes=boxes)

    def losses(
        self,
        levels: Sequence[Tensor],
        proposals: Regions,
        targets: Sequence[Target],
        metas: Sequence[ImageMeta],
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Return the losses of all stages under mmdetection's names, ``s0.loss_cls`` for the first of a cascade."""
        config, found = self.config, dict[str, Tensor]()
        semantic = None
        if config.semantic is not None:
            logits, semantic = self.semantic_head(levels)
            labels = torch.stack([target.semantic for target in targets if target.semantic is not None])
            found["loss_semantic_seg"] = self.semantic_head.loss(logits, labels)
        boxes = proposals.split()
        for stage, stage_config in enumerate(config.stages):
            samples = self._sample(stage, boxes, targets, generator)
            regions = Regions.join([one.boxes for one in samples])
            logits, deltas = self.box_outputs(stage, levels, regions, semantic)
            losses = self.box_heads[stage].losses(logits, deltas, samples)
            if stage + 1 < len(config.stages) or config.interleaved:
                boxes = self._refined(stage, regions, samples, logits.detach(), deltas.detach(), metas)
            if config.mask is not None:
                if config.interleaved:
                    samples = self._sample(stage, boxes, targets, generator)
                masks = self._train_masks(stage, levels, samples, semantic)
                losses["loss_mask"] = mask_loss(masks, samples, targets, config.mask.weight)
            prefix = f"s{stage}." if len(config.stages) > 1 else ""
            for name, value in losses.items():
                found[prefix + name] = value * stage_config.weight if "loss" in name else value
        return found

    def _sample(
        self, stage: int, boxes: Sequence[Tensor], targets: Sequence[Target], generator: torch.Generator | None
    ) -> list[Sample]:
        config = self.config.stages[stage]
        return [
            sample_regions(part, target, self.num_classes, config.assign, config.sample, generator)
            for part, target in zip(boxes, targets, strict=True)
        ]

    def _train_masks(
        self, stage: int, levels: Sequence[Tensor], samples: Sequence[Sample], semantic: Tensor | None
    ) -> Tensor:
        """Return a stage's mask logits for the samples' positives."""
        config = self.config.mask
        assert config is not None
        regions = Regions.join([one.positive_boxes for one in samples])
        pooled = self._pool(levels, regions, config.pool_size, semantic)
        before = None
        for head in self.mask_heads[:stage] if config.information_flow else ():
            before = head.features(pooled, before)
        return wide(self.mask_heads[stage](pooled, before)[0])

    def _refined(
        self,
        stage: int,
        regions: Regions,
        samples: Sequence[Sample],
        logits: Tensor,
        deltas: Tensor,
        metas: Sequence[ImageMeta],
    ) -> list[Tensor]:
        """Return each image's boxes after a stage, without those that were objects' own."""
        labels = torch.cat([one.labels for one in samples])
        sizes = sizes_of(metas, labels.device)[regions.image]
        moved = self.box_heads[stage].refine(regions.boxes, logits, deltas, sizes, labels)
        parts = torch.split(moved, [len(one.boxes) for one in samples])
        return [
            torch.cat([part[: one.positives][~one.is_object], part[one.positives :]])
            for part, one in zip(parts, samples, strict=True)
        ]


def _canvas(meta: ImageMeta, rescale: bool) -> tuple[int, int]:
    """Return (height, width) of an image's masks."""
    height, width = meta.original_size or meta.size
    if rescale or meta.original_size is None:
        return height, width
    return round(height * meta.scale[1]), round(width * meta.scale[0])


def _listed(heads: nn.Module) -> list:  # type: ignore[type-arg]
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]
