"""``Detector``: a detector on HRNetV2p, with mmdetection's parameter names and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.config import HeadConfig, HRNetConfig
from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.detection.fcos import FCOSHead
from hrnet_fast.detection.operators import torchvision_operators
from hrnet_fast.detection.results import Detections, ImageMeta, Target, check_metas, check_targets
from hrnet_fast.detection.roi_head import RoIHead
from hrnet_fast.detection.rpn import RPNHead
from hrnet_fast.errors import ConfigError, InputError, shown
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.reference.heads import HRFPN, make_head

Losses = dict[str, Tensor | list[Tensor]]


class PyramidNeck(HRFPN):
    """HRNetV2p's pyramid on the branches of the backbone; keys as in mmdetection's ``neck``."""

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__(sum(config.out_channels), config.head)
        self._head = make_head(config)

    def forward(self, branches: list[Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(self._head.concatenate(branches))


class Detector(nn.Module):
    """Faster, Mask, Cascade and Cascade Mask R-CNN, Hybrid Task Cascade or FCOS on HRNetV2p.

    The state_dict has the names of mmdetection 3.x (``backbone``, ``neck``, ``rpn_head``, ``roi_head``, ``bbox_head``),
    which contain every parameter: a file of one loads in the other. ``backbone`` is an :class:`hrnet_fast.HRNet`,
    accelerated as `impl` says; :func:`hrnet_fast.accelerate`, ``restore``, ``explain`` and ``optimize_for_inference``
    take the whole detector.

    Args:
        config: the detector; :func:`make_detector_config` makes those that mmdetection ships.
        impl: of the backbone, as in :class:`hrnet_fast.HRNet`.

    Raises:
        ConfigError: `config` is no DetectorConfig.
        MissingPackageError: torchvision is not installed.
        ImplementationError: a named implementation that cannot run here.
    """

    def __init__(self, config: DetectorConfig, *, impl: str = "auto") -> None:
        super().__init__()
        if not isinstance(config, DetectorConfig):
            raise ConfigError(f"Detector: config is {shown(config)}; accepted is a DetectorConfig.")
        if torch.get_default_device().type != "meta":  # for keys and shapes alone nothing is computed
            torchvision_operators()
        self.config = config
        network, classes = config.network, config.num_classes
        self.backbone = HRNet(network.override(head=HeadConfig("features")), impl=impl)
        self.neck = PyramidNeck(network)
        width, levels = network.head.channels, network.head.num_levels
        if config.fcos is not None:
            self.bbox_head = FCOSHead(width, classes, config.fcos)
        else:
            assert config.rpn is not None
            assert config.roi is not None
            self.rpn_head = RPNHead(width, config.rpn, config.legacy)
            self.roi_head = RoIHead(width, levels, classes, config.roi, config.legacy)
        self.impl = impl
        self.keypoints: str | None = None  # as in HRNet: a detector has no heatmaps
        self.family: str | None = None
        self.notes: tuple[str, ...] = ()
        self.assumptions: tuple[str, ...] = ()

    def set_origin(
        self, family: str, notes: tuple[str, ...], assumptions: tuple[str, ...] = (), keypoints: str | None = None
    ) -> None:
        """Record which family the weights came from, and what loading left out and assumed."""
        self.family = family
        self.notes = notes
        self.assumptions = assumptions

    @classmethod
    def from_config(cls, cfg: Any, *, impl: str = "auto", **overrides: Any) -> Detector:
        """Build the detector that a configuration of mmdetection describes.

        Args:
            cfg: a ``.py`` path (read by mmengine), an mmengine ``Config``, or the mapping of a file or its ``model``.
            impl: as in the class.
            overrides: fields that are to differ, as :meth:`DetectorConfig.override` takes them.

        Raises:
            ConfigError: a setting cannot be built or is unknown, or the configuration is of no detector on HRNetV2p.
        """
        from hrnet_fast.detection.mmdet_config import read_detector

        return cls(read_detector(cfg).override(**overrides), impl=impl)

    def forward(
        self,
        images: Any,
        targets: Sequence[Target] | None = None,
        metas: Sequence[ImageMeta] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Return the detections of each image, or with targets the losses of a batch.

        Args:
            images: a list of pictures (paths, Pillow images or RGB bytes [H, W, 3]), which are scaled and normalised as
                ``config.picture`` says; or a normalised batch [N, C, H, W] as in :meth:`predict`.
            targets, metas, generator: as in :meth:`losses`, with a batch.

        Returns:
            A list of :class:`Detections`, in pixels of the pictures; what :meth:`losses` returns with targets.

        Raises:
            InputError: images, targets or sizes do not fit.
        """
        if targets is not None:
            return self.losses(images, targets, metas, generator)
        if isinstance(images, (list, tuple)) and metas is None:
            images, metas = self.prepare(images)
        return self.predict(images, metas)

    def prepare(self, pictures: Sequence[Any]) -> tuple[Tensor, list[ImageMeta]]:
        """Return the normalised batch of pictures and their sizes, which :meth:`predict` takes.

        Raises:
            InputError: a picture is no path, Pillow image or RGB bytes [H, W, 3], or the backbone takes other than 3
                channels.
        """
        if self.config.in_channels != 3:
            raise InputError(
                f"Detector: pictures have 3 channels, and this backbone takes {self.config.in_channels}; give a "
                "normalised batch [N, C, H, W]."
            )
        from hrnet_fast.detection.pictures import prepare  # reading pictures needs Pillow, a model does not

        return prepare(pictures, self.config.picture, next(self.parameters()))

    def levels(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the pyramid of a batch [N, C, H, W], the largest level first."""
        levels: tuple[Tensor, ...] = self.neck(self.backbone(images))
        return levels

    @torch.no_grad()
    def predict(
        self, images: Tensor, metas: Sequence[ImageMeta] | None = None, *, rescale: bool = True
    ) -> list[Detections]:
        """Return the detections of each image, best first.

        Args:
            images: normalised batch [N, C, H, W], padded right and below.
            metas: sizes of the images; None for images that fill the batch and were not scaled.
            rescale: whether boxes and masks are in pixels of the pictures, instead of the network input.

        Raises:
            InputError: the batch or the sizes do not fit.
        """
        metas = self._metas(images, metas)
        levels = self.levels(images)
        if self.config.fcos is not None:
            found = self.bbox_head.detect(self.bbox_head(levels), metas, rescale)
            counts = found.counts
            assert found.scores is not None
            assert found.labels is not None
            parts = (torch.split(one, counts) for one in (found.boxes, found.scores, found.labels))
            return [Detections(*one) for one in zip(*parts, strict=True)]
        assert self.config.rpn is not None
        proposals = self.rpn_head.proposals(self.rpn_head(levels), metas, self.config.rpn.test_proposals)
        return self.roi_head.detect(levels, proposals, metas, rescale)

    def losses(
        self,
        images: Tensor,
        targets: Sequence[Target],
        metas: Sequence[ImageMeta] | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Return the entries of mmdetection's ``loss``; the sum of those with "loss" in their name is what is trained.

        Args:
            images: as in :meth:`predict`.
            targets: objects of each image, which may be none.
            metas: as in :meth:`predict`.
            generator: draws the boxes that are trained on; None takes torch's own.

        ``loss_rpn_cls`` and ``loss_rpn_bbox`` are lists with one entry for each level, ``acc`` entries percentages.

        Raises:
            InputError: the batch, the sizes or the targets do not fit.
        """
        metas = self._metas(images, metas)
        roi = self.config.roi
        masks, semantic = roi is not None and roi.mask is not None, None if roi is None else roi.semantic
        targets = check_targets(images, targets, metas, self.config.num_classes, masks, semantic)
        levels = self.levels(images)
        if self.config.fcos is not None:
            return dict(self.bbox_head.losses(self.bbox_head(levels), targets))
        assert self.config.rpn is not None
        outputs = self.rpn_head(levels)
        found: Losses = dict(self.rpn_head.losses(outputs, targets, metas, generator))
        proposals = self.rpn_head.proposals(outputs, metas, self.config.rpn.train_proposals)
        return found | self.roi_head.losses(levels, proposals, targets, metas, generator)

    def _metas(self, images: Any, metas: Sequence[ImageMeta] | None) -> list[ImageMeta]:
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise InputError(
                f"Detector: {shown(images)} given; accepted is a normalised batch [N, C, H, W], or for detections a "
                "list of pictures."
            )
        return check_metas(images, metas)


def total_loss(losses: Losses) -> Tensor:
    """Return the sum of the entries of :meth:`Detector.losses` that are trained, those with "loss" in their name."""
    parts = [value for name, value in losses.items() if "loss" in name]
    return torch.stack([part for value in parts for part in (value if isinstance(value, list) else [value])]).sum()
