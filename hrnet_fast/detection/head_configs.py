"""Configurations of detectors' heads: box stages, masks, the semantic branch, and FCOS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hrnet_fast.config.fields import as_tuple, check_fields, is_int
from hrnet_fast.config.parts import build_part
from hrnet_fast.detection.config_parts import (
    AssignConfig,
    BoxLossConfig,
    SampleConfig,
    as_numbers,
    build_field,
    check_range,
)
from hrnet_fast.errors import ConfigError, shown


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
    box_loss: BoxLossConfig = field(default_factory=BoxLossConfig)
    class_weight: float = 1.0
    assign: AssignConfig = field(default_factory=AssignConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "stds", as_numbers("BoxStageConfig", "stds", self.stds, 4))
        check_range("BoxStageConfig", 0.0, class_weight=self.class_weight, weight=self.weight)
        for name, kind in (("box_loss", BoxLossConfig), ("assign", AssignConfig), ("sample", SampleConfig)):
            build_field(self, name, kind)


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
        check_fields(self)
        check_range("MaskConfig", 0.0, weight=self.weight)


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
        check_fields(self, apart=("level", "ignore_index"))
        if not is_int(self.level) or self.level < 0 or not is_int(self.ignore_index):
            raise ConfigError(
                f"SemanticConfig: level={shown(self.level)} and ignore_index={shown(self.ignore_index)} must be "
                "integers, the level at least 0."
            )
        check_range("SemanticConfig", 0.0, weight=self.weight)


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
        build_field(self, "mask", MaskConfig, optional=True)
        build_field(self, "semantic", SemanticConfig, optional=True)
        check_fields(self)
        if self.interleaved and self.mask is None:
            raise ConfigError("RoIConfig: interleaved=True trains mask heads, and mask is None. Leave it out.")
        if self.mask is not None and self.mask.information_flow and len(stages) == 1:
            raise ConfigError("RoIConfig: mask.information_flow=True needs the mask heads of two or more stages.")
        check_range("RoIConfig", 0.0, 1.0, score_threshold=self.score_threshold, nms_iou=self.nms_iou)
        check_range("RoIConfig", 0.0, 1.0, mask_threshold=self.mask_threshold)
        check_range("RoIConfig", 1.0, finest_size=self.finest_size)


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
        check_fields(self)
        object.__setattr__(self, "strides", as_numbers("FCOSConfig", "strides", self.strides))
        object.__setattr__(self, "ranges", as_numbers("FCOSConfig", "ranges", self.ranges, len(self.strides) - 1))
        weights = {"class_weight": self.class_weight, "box_weight": self.box_weight}
        check_range("FCOSConfig", 0.0, focal_alpha=self.focal_alpha, focal_gamma=self.focal_gamma, **weights)
        check_range("FCOSConfig", 0.0, centerness_weight=self.centerness_weight, least_size=self.least_size)
        check_range("FCOSConfig", 0.0, 1.0, score_threshold=self.score_threshold, nms_iou=self.nms_iou)
