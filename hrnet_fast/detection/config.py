"""``DetectorConfig`` and its parts: the configuration of a detector on HRNetV2p."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hrnet_fast.config import HRNetConfig
from hrnet_fast.config.fields import as_tuple, check_bools, check_one_of, check_positive, is_int, is_real
from hrnet_fast.config.parts import build_part
from hrnet_fast.errors import ConfigError, shown


def check_numbers(owner: str, least: float, most: float = float("inf"), **values: float) -> None:
    """Raise ConfigError unless each value is a number from `least` to `most`."""
    for name, value in values.items():
        if not is_real(value) or not least <= value <= most:
            raise ConfigError(f"{owner}: {name}={shown(value)} must be a number from {least:g} to {most:g}.")


def as_numbers(owner: str, name: str, values: object, count: int | None = None) -> tuple[float, ...]:
    """Return a sequence of positive numbers as a tuple; raise ConfigError for others, or another count."""
    found = as_tuple(owner, name, values)
    if not found or not all(is_real(v) and v > 0 for v in found) or (count is not None and len(found) != count):
        raise ConfigError(f"{owner}: {name}={shown(values)} must be {count or 'one or more'} positive numbers.")
    return found


def _part(owner: object, name: str, kind: Any, *, optional: bool = False) -> None:
    """Build a nested configuration that was given as a mapping, and check its type."""
    value = getattr(owner, name)
    if isinstance(value, Mapping):
        value = HRNetConfig.from_dict(value) if kind is HRNetConfig else build_part(kind, value)
        object.__setattr__(owner, name, value)
    if not isinstance(value, kind) and not (optional and value is None):
        raise ConfigError(f"{type(owner).__name__}: {name} has {shown(value)} where a {kind.__name__} belongs.")


@dataclass(frozen=True)
class AnchorConfig:
    """The anchors of a region proposal network.

    Attributes:
        scales: sizes of the anchors in units of the level's stride.
        ratios: heights divided by widths.
        strides: pixels of the network input per cell, for each level.
    """

    scales: tuple[float, ...] = (8,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)

    def __post_init__(self) -> None:
        for name in ("scales", "ratios", "strides"):
            object.__setattr__(self, name, as_numbers("AnchorConfig", name, getattr(self, name)))

    @property
    def per_cell(self) -> int:
        """Anchors of a cell."""
        return len(self.scales) * len(self.ratios)


@dataclass(frozen=True)
class AssignConfig:
    """How boxes are assigned to objects by intersection over union (mmdetection's ``MaxIoUAssigner``).

    Attributes:
        positive_iou: a box whose best IoU is at least this is assigned to that object.
        negative_iou: a box whose best IoU is below this is background.
        least_iou: least IoU of a match by ``match_low_quality``.
        match_low_quality: whether each object also takes the boxes that overlap it most.
        ignore_iof: boxes of which a larger share lies in an ignored region are left out; negative for none.
    """

    positive_iou: float = 0.5
    negative_iou: float = 0.5
    least_iou: float = 0.5
    match_low_quality: bool = False
    ignore_iof: float = -1.0

    def __post_init__(self) -> None:
        ious = {"positive_iou": self.positive_iou, "negative_iou": self.negative_iou, "least_iou": self.least_iou}
        check_numbers("AssignConfig", 0.0, 1.0, **ious)
        check_numbers("AssignConfig", -1.0, 1.0, ignore_iof=self.ignore_iof)
        check_bools("AssignConfig", match_low_quality=self.match_low_quality)


@dataclass(frozen=True)
class SampleConfig:
    """How many of the assigned boxes of an image are trained on (mmdetection's ``RandomSampler``).

    Attributes:
        number: boxes of an image.
        positive_fraction: largest share of positives among them.
        add_objects: whether the objects' own boxes are candidates.
    """

    number: int = 512
    positive_fraction: float = 0.25
    add_objects: bool = True

    def __post_init__(self) -> None:
        check_positive("SampleConfig", number=self.number)
        check_numbers("SampleConfig", 0.0, 1.0, positive_fraction=self.positive_fraction)
        check_bools("SampleConfig", add_objects=self.add_objects)


@dataclass(frozen=True)
class BoxLossConfig:
    """The loss of box deltas.

    Attributes:
        kind: ``"l1"``, or ``"smooth_l1"``, which is quadratic below `beta`.
        beta: where the smooth loss becomes linear.
        weight: factor of the loss.
    """

    kind: Literal["l1", "smooth_l1"] = "l1"
    beta: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_one_of("BoxLossConfig", "kind", self.kind, ("l1", "smooth_l1"))
        check_numbers("BoxLossConfig", 1e-9, beta=self.beta)
        check_numbers("BoxLossConfig", 0.0, weight=self.weight)


@dataclass(frozen=True)
class ProposalConfig:
    """The selection of proposals from the anchors of an image.

    Attributes:
        before_nms: best anchors of each level that are kept before non-maximum suppression.
        per_image: best proposals of an image.
        nms_iou: a proposal that overlaps a better one of its level by more than this is dropped.
        least_size: proposals whose width or height is not larger are dropped, in pixels of the network input.
    """

    before_nms: int = 1000
    per_image: int = 1000
    nms_iou: float = 0.7
    least_size: float = 0.0

    def __post_init__(self) -> None:
        check_positive("ProposalConfig", before_nms=self.before_nms, per_image=self.per_image)
        check_numbers("ProposalConfig", 0.0, 1.0, nms_iou=self.nms_iou)
        check_numbers("ProposalConfig", 0.0, least_size=self.least_size)


@dataclass(frozen=True)
class RPNConfig:
    """The region proposal network of a two-stage detector.

    Attributes:
        channels: of its 3x3 convolution.
        anchors: boxes that it refines.
        stds: its deltas are divided by these.
        box_loss: loss of its deltas.
        class_weight: factor of its classification loss.
        assign, sample: which anchors are trained on.
        allowed_border: anchors that reach further beyond the image are not trained on, in pixels; negative for all.
        train_proposals, test_proposals: selection in training and in prediction.
    """

    channels: int = 256
    anchors: AnchorConfig = AnchorConfig()
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    box_loss: BoxLossConfig = BoxLossConfig()
    class_weight: float = 1.0
    assign: AssignConfig = AssignConfig(0.7, 0.3, 0.3, True)
    sample: SampleConfig = SampleConfig(256, 0.5, False)
    allowed_border: int = -1
    train_proposals: ProposalConfig = ProposalConfig(2000)
    test_proposals: ProposalConfig = ProposalConfig()

    def __post_init__(self) -> None:
        check_positive("RPNConfig", channels=self.channels)
        object.__setattr__(self, "stds", as_numbers("RPNConfig", "stds", self.stds, 4))
        check_numbers("RPNConfig", 0.0, class_weight=self.class_weight)
        if not is_int(self.allowed_border):
            raise ConfigError(f"RPNConfig: allowed_border={shown(self.allowed_border)} must be an integer.")
        parts = (("anchors", AnchorConfig), ("box_loss", BoxLossConfig), ("assign", AssignConfig))
        more = (("sample", SampleConfig), ("train_proposals", ProposalConfig), ("test_proposals", ProposalConfig))
        for name, kind in (*parts, *more):
            _part(self, name, kind)


@dataclass(frozen=True)
class BoxStageConfig:
    """One stage of box refinement.

    Attributes:
        fc_channels: width of the fully connected layers.
        num_fcs: fully connected layers before the outputs.
        class_agnostic: whether all classes share one box.
        stds: the deltas are divided by these.
        box_loss: loss of the deltas.
        class_weight: factor of the classification loss.
        assign, sample: which proposals are trained on.
        weight: factor of all losses of this stage, its masks' included.
    """

    fc_channels: int = 1024
    num_fcs: int = 2
    class_agnostic: bool = False
    stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    box_loss: BoxLossConfig = BoxLossConfig()
    class_weight: float = 1.0
    assign: AssignConfig = AssignConfig()
    sample: SampleConfig = SampleConfig()
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("BoxStageConfig", fc_channels=self.fc_channels, num_fcs=self.num_fcs)
        check_bools("BoxStageConfig", class_agnostic=self.class_agnostic)
        object.__setattr__(self, "stds", as_numbers("BoxStageConfig", "stds", self.stds, 4))
        check_numbers("BoxStageConfig", 0.0, class_weight=self.class_weight, weight=self.weight)
        for name, kind in (("box_loss", BoxLossConfig), ("assign", AssignConfig), ("sample", SampleConfig)):
            _part(self, name, kind)


@dataclass(frozen=True)
class MaskConfig:
    """The mask heads, one for each box stage.

    Attributes:
        channels: of their convolutions.
        num_convs: 3x3 convolutions before the transposed one.
        pool_size: cells of the pooled region in each direction; masks have twice as many.
        class_agnostic: whether all classes share one mask.
        weight: factor of the loss.
        information_flow: whether each head adds the features of the head before (Hybrid Task Cascade).
    """

    channels: int = 256
    num_convs: int = 4
    pool_size: int = 14
    class_agnostic: bool = False
    weight: float = 1.0
    information_flow: bool = False

    def __post_init__(self) -> None:
        check_positive("MaskConfig", channels=self.channels, num_convs=self.num_convs, pool_size=self.pool_size)
        check_bools("MaskConfig", class_agnostic=self.class_agnostic, information_flow=self.information_flow)
        check_numbers("MaskConfig", 0.0, weight=self.weight)


@dataclass(frozen=True)
class SemanticConfig:
    """The semantic branch of Hybrid Task Cascade.

    Attributes:
        num_classes: of its segmentation.
        channels: of its convolutions.
        num_convs: 3x3 convolutions after the fusion of all levels.
        level: index of the level to whose size the others are resampled.
        pool_size: cells of the pooled region in each direction.
        ignore_index: label of pixels without a class.
        weight: factor of the loss.
    """

    num_classes: int = 183
    channels: int = 256
    num_convs: int = 4
    level: int = 1
    pool_size: int = 14
    ignore_index: int = 255
    weight: float = 0.2

    def __post_init__(self) -> None:
        sizes = {"num_classes": self.num_classes, "channels": self.channels, "pool_size": self.pool_size}
        check_positive("SemanticConfig", num_convs=self.num_convs, **sizes)
        if not is_int(self.level) or self.level < 0 or not is_int(self.ignore_index):
            raise ConfigError(
                f"SemanticConfig: level={shown(self.level)} and ignore_index={shown(self.ignore_index)} must be "
                "integers, the level at least 0."
            )
        check_numbers("SemanticConfig", 0.0, weight=self.weight)


@dataclass(frozen=True)
class RoIConfig:
    """The second part of a two-stage detector: box stages, masks and the final selection.

    Attributes:
        stages: one for Faster and Mask R-CNN, three for the cascades.
        strides: of the levels that regions are pooled from.
        pool_size: cells of a pooled region in each direction.
        finest_size: regions whose side is below twice this are pooled from the first level.
        mask: the mask heads, or None.
        semantic: the semantic branch, or None.
        interleaved: whether each mask head is trained on boxes that its own stage refined (Hybrid Task Cascade).
        score_threshold: least score of a detection.
        nms_iou: a detection that overlaps a better one of its class by more than this is dropped.
        per_image: most detections of an image.
        mask_threshold: least probability of a mask's pixel.
    """

    stages: tuple[BoxStageConfig, ...] = (BoxStageConfig(),)
    strides: tuple[int, ...] = (4, 8, 16, 32)
    pool_size: int = 7
    finest_size: float = 56
    mask: MaskConfig | None = None
    semantic: SemanticConfig | None = None
    interleaved: bool = False
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    per_image: int = 100
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        stages = as_tuple("RoIConfig", "stages", self.stages)
        stages = tuple(build_part(BoxStageConfig, s) if isinstance(s, Mapping) else s for s in stages)
        if not stages or not all(isinstance(s, BoxStageConfig) for s in stages):
            raise ConfigError(f"RoIConfig: stages={shown(self.stages)} must be one or more BoxStageConfig.")
        object.__setattr__(self, "stages", stages)
        object.__setattr__(self, "strides", as_numbers("RoIConfig", "strides", self.strides))
        _part(self, "mask", MaskConfig, optional=True)
        _part(self, "semantic", SemanticConfig, optional=True)
        check_positive("RoIConfig", pool_size=self.pool_size, per_image=self.per_image)
        check_bools("RoIConfig", interleaved=self.interleaved)
        check_numbers("RoIConfig", 0.0, 1.0, score_threshold=self.score_threshold, nms_iou=self.nms_iou)
        check_numbers("RoIConfig", 0.0, 1.0, mask_threshold=self.mask_threshold)
        check_numbers("RoIConfig", 1.0, finest_size=self.finest_size)


@dataclass(frozen=True)
class FCOSConfig:
    """The head of the one-stage detector FCOS (arXiv 1904.01355).

    Attributes:
        channels: of its two towers.
        num_convs: 3x3 convolutions of each tower.
        groups: of the towers' group normalisation.
        strides: pixels of the network input per cell, for each level.
        ranges: largest distance from a point to its box's sides that each level but the last is trained on, in pixels.
        focal_alpha, focal_gamma: of the classification's focal loss.
        class_weight, box_weight, centerness_weight: factors of the losses.
        before_nms: best entries of each level that are kept before non-maximum suppression.
        score_threshold: least class probability, before the centerness.
        nms_iou, per_image, least_size: as in :class:`RoIConfig` and :class:`ProposalConfig`.
    """

    channels: int = 256
    num_convs: int = 4
    groups: int = 32
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    ranges: tuple[float, ...] = (64, 128, 256, 512)
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    class_weight: float = 1.0
    box_weight: float = 1.0
    centerness_weight: float = 1.0
    before_nms: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    per_image: int = 100
    least_size: float = 0.0

    def __post_init__(self) -> None:
        sizes = {"channels": self.channels, "num_convs": self.num_convs, "groups": self.groups}
        check_positive("FCOSConfig", before_nms=self.before_nms, per_image=self.per_image, **sizes)
        object.__setattr__(self, "strides", as_numbers("FCOSConfig", "strides", self.strides))
        object.__setattr__(self, "ranges", as_numbers("FCOSConfig", "ranges", self.ranges, len(self.strides) - 1))
        weights = {"class_weight": self.class_weight, "box_weight": self.box_weight}
        check_numbers("FCOSConfig", 0.0, focal_alpha=self.focal_alpha, focal_gamma=self.focal_gamma, **weights)
        check_numbers("FCOSConfig", 0.0, centerness_weight=self.centerness_weight, least_size=self.least_size)
        check_numbers("FCOSConfig", 0.0, 1.0, score_threshold=self.score_threshold, nms_iou=self.nms_iou)


@dataclass(frozen=True)
class PictureConfig:
    """How a picture becomes the network's input.

    Attributes:
        long_side, short_side: the picture is scaled, with its ratio kept, until one of its sides has this many pixels.
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
        check_positive("PictureConfig", long_side=self.long_side, short_side=self.short_side, divisor=self.divisor)
        check_one_of("PictureConfig", "channel_order", self.channel_order, ("rgb", "bgr"))
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
    """

    network: HRNetConfig
    num_classes: int = 80
    rpn: RPNConfig | None = None
    roi: RoIConfig | None = None
    fcos: FCOSConfig | None = None
    picture: PictureConfig = field(default_factory=PictureConfig)

    def __post_init__(self) -> None:
        owner = "DetectorConfig"
        _part(self, "network", HRNetConfig)
        for name, kind in (("rpn", RPNConfig), ("roi", RoIConfig), ("fcos", FCOSConfig)):
            _part(self, name, kind, optional=True)
        _part(self, "picture", PictureConfig)
        check_positive(owner, num_classes=self.num_classes)
        if (self.rpn is None) != (self.roi is None) or (self.rpn is None) == (self.fcos is None):
            raise ConfigError(f"{owner}: give rpn and roi (two stages), or fcos (one stage).")
        if self.network.head.kind != "v2p":
            raise ConfigError(f"{owner}: network has a {self.network.head.kind!r} head; a detector needs 'v2p'.")
        self._check_levels()

    def _check_levels(self) -> None:
        levels = self.network.head.num_levels
        if self.fcos is not None:
            given = {"fcos.strides": len(self.fcos.strides)}
            if self.fcos.channels % self.fcos.groups:
                raise ConfigError(f"DetectorConfig: fcos.groups={self.fcos.groups} must divide its channels.")
        else:
            assert self.rpn is not None
            given = {"rpn.anchors.strides": len(self.rpn.anchors.strides)}
        for name, count in given.items():
            if count != levels:
                raise ConfigError(f"DetectorConfig: {name} has {count} entries for {levels} levels of the pyramid.")
        if self.roi is not None:
            if len(self.roi.strides) > levels:
                raise ConfigError(f"DetectorConfig: roi.strides has more entries than the pyramid's {levels} levels.")
            if self.roi.semantic is not None and self.roi.semantic.level >= levels:
                raise ConfigError(f"DetectorConfig: roi.semantic.level must be below {levels}, the pyramid's levels.")

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
