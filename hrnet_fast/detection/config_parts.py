"""Configurations of the parts of detectors' heads: anchors, assignment, samples, losses, proposals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hrnet_fast.config import HRNetConfig
from hrnet_fast.config.fields import as_tuple, check_fields, is_int, is_real
from hrnet_fast.config.parts import build_part
from hrnet_fast.errors import ConfigError, shown


def check_range(owner: str, least: float, most: float = float("inf"), **values: float) -> None:
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


def build_field(owner: object, name: str, kind: Any, *, optional: bool = False) -> None:
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
        check_range("AssignConfig", 0.0, 1.0, **ious)
        check_range("AssignConfig", -1.0, 1.0, ignore_iof=self.ignore_iof)
        check_fields(self)


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
        check_range("SampleConfig", 0.0, 1.0, positive_fraction=self.positive_fraction)
        check_fields(self)


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
        check_fields(self)
        check_range("BoxLossConfig", 1e-9, beta=self.beta)
        check_range("BoxLossConfig", 0.0, weight=self.weight)


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
        check_fields(self)
        check_range("ProposalConfig", 0.0, 1.0, nms_iou=self.nms_iou)
        check_range("ProposalConfig", 0.0, least_size=self.least_size)


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
        check_fields(self, apart=("allowed_border",))
        object.__setattr__(self, "stds", as_numbers("RPNConfig", "stds", self.stds, 4))
        check_range("RPNConfig", 0.0, class_weight=self.class_weight)
        if not is_int(self.allowed_border):
            raise ConfigError(f"RPNConfig: allowed_border={shown(self.allowed_border)} must be an integer.")
        parts = (("anchors", AnchorConfig), ("box_loss", BoxLossConfig), ("assign", AssignConfig))
        more = (("sample", SampleConfig), ("train_proposals", ProposalConfig), ("test_proposals", ProposalConfig))
        for name, kind in (*parts, *more):
            build_field(self, name, kind)
