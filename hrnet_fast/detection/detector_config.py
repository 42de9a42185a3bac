"""``DetectorConfig``: the configuration of a detector on HRNetV2p."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hrnet_fast.config import HRNetConfig
from hrnet_fast.config.fields import check_fields
from hrnet_fast.config.parts import build_part
from hrnet_fast.detection.config_parts import RPNConfig, as_numbers, build_field
from hrnet_fast.detection.head_configs import FCOSConfig, RoIConfig
from hrnet_fast.errors import ConfigError


@dataclass(frozen=True)
class PictureConfig:
    """How a picture becomes the network's input.

    Attributes:
        long_side, short_side: the picture is scaled, with its ratio kept, until one of its sides has this many pixels.
            The larger number is that of the long side, as in mmdetection.
        channel_order: ``"rgb"`` or ``"bgr"``.
        mean, std: of each channel in 0 .. 255, in that order.
        divisor: the batch is padded with zeros, right and below, to a multiple of this.
    """

    long_side: int = 1333
    short_side: int = 800
    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    divisor: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("mean", "std"):
            object.__setattr__(self, name, as_numbers("PictureConfig", name, getattr(self, name), 3))


@dataclass(frozen=True)
class DetectorConfig:
    """The configuration of a detector.

    Attributes:
        network: backbone and pyramid, an HRNet with the ``"v2p"`` head.
        num_classes: classes without the background.
        rpn, roi: both parts of a two-stage detector.
        fcos: the head of a one-stage detector, in the place of these two.
        picture: preparation of pictures.
        legacy: whether anchors, box deltas and pooled regions are those of mmdetection 1.x, as version 3.3 has them for
            files of that time (``LegacyAnchorGenerator``, ``LegacyDeltaXYWHBBoxCoder``, and ``RoIAlign`` with 2x2
            samples and ``aligned=False``); of a two-stage detector.
    """

    network: HRNetConfig
    num_classes: int = 80
    rpn: RPNConfig | None = None
    roi: RoIConfig | None = None
    fcos: FCOSConfig | None = None
    picture: PictureConfig = field(default_factory=PictureConfig)
    legacy: bool = False

    def __post_init__(self) -> None:
        owner = "DetectorConfig"
        check_fields(self)
        build_field(self, "network", HRNetConfig)
        for name, kind in (("rpn", RPNConfig), ("roi", RoIConfig), ("fcos", FCOSConfig)):
            build_field(self, name, kind, optional=True)
        build_field(self, "picture", PictureConfig)
        if (self.rpn is None) != (self.roi is None) or (self.rpn is None) == (self.fcos is None):
            raise ConfigError(f"{owner}: give rpn and roi (two stages), or fcos (one stage).")
        if self.legacy and self.rpn is None:
            raise ConfigError(f"{owner}: legacy=True is of two-stage detectors, and this is FCOS. Leave it out.")
        if self.network.head.kind != "v2p":
            raise ConfigError(f"{owner}: network has a {self.network.head.kind!r} head; a detector needs 'v2p'.")
        self._check_levels()

    def _check_levels(self) -> None:
        head = self.network.head
        levels = tuple(4 * head.pyramid_stride << i for i in range(head.num_levels))
        strides: dict[str, tuple[float, ...]] = {}
        if self.fcos is not None:
            strides["fcos.strides"] = self.fcos.strides
            if self.fcos.channels % self.fcos.groups:
                raise ConfigError(f"DetectorConfig: fcos.groups={self.fcos.groups} must divide its channels.")
        if self.rpn is not None:
            strides["rpn.anchors.strides"] = self.rpn.anchors.strides
        if self.roi is not None:
            if len(self.roi.strides) > len(levels):
                raise ConfigError(
                    f"DetectorConfig: roi.strides has more entries than the pyramid's {len(levels)} levels."
                )
            strides["roi.strides"] = self.roi.strides
            if self.roi.semantic is not None and self.roi.semantic.level >= len(levels):
                raise ConfigError(
                    f"DetectorConfig: roi.semantic.level must be below {len(levels)}, the pyramid's levels."
                )
        for name, given in strides.items():
            needed = levels[: len(given)] if name == "roi.strides" else levels  # regions may use the first levels alone
            if given != needed:
                raise ConfigError(
                    f"DetectorConfig: {name} is {given}; a pyramid of {len(levels)} levels with "
                    f"pyramid_stride={head.pyramid_stride} has {needed}. Give the same in both."
                )

    @property
    def in_channels(self) -> int:
        """Channels of the network's input."""
        return self.network.in_channels

    @property
    def kind(self) -> str:
        """The detector's name: ``"fcos"``, ``"faster_rcnn"``, ``"mask_rcnn"``, ``"cascade_rcnn"``, ..., ``"htc"``."""
        if self.roi is None:
            return "fcos"
        if self.roi.semantic is not None or self.roi.interleaved or (self.roi.mask and self.roi.mask.information_flow):
            return "htc"
        masks = "mask_" if self.roi.mask is not None else ""
        if len(self.roi.stages) > 1:
            return f"cascade_{masks}rcnn"
        return f"{masks or 'faster_'}rcnn"

    def override(self, **changes: Any) -> DetectorConfig:
        """Return a copy with fields changed: of this class, of `picture`, of `roi` or `fcos`, or of the network.

        Raises:
            ConfigError: a name is unknown, or no detector can have this combination.
        """
        own = {f.name: changes.pop(f.name) for f in dataclasses.fields(self) if f.name in changes}
        for name in ("picture", "fcos" if self.roi is None else "roi"):
            part = getattr(self, name)
            fields = {f.name: changes.pop(f.name) for f in dataclasses.fields(part) if f.name in changes}
            if fields:
                own[name] = dataclasses.replace(own.get(name, part), **fields)
        if changes:
            own["network"] = own.get("network", self.network).override(**changes)
        return dataclasses.replace(self, **own)

    def to_dict(self) -> dict[str, Any]:
        """Return dictionaries, lists and scalars for JSON and :meth:`from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetectorConfig:
        """Rebuild a configuration from :meth:`to_dict`.

        Raises:
            ConfigError: a field or value is unknown.
        """
        made: DetectorConfig = build_part(cls, data)
        return made
