"""What depends on a recipe's task: its inputs, losses, metrics, and the fields of the evaluation that it uses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrnet_fast.errors import ConfigError, InputError, shown
from hrnet_fast.recipes.sections import EvaluationRecipe
from hrnet_fast.recipes.values import (
    check_above_zero,
    check_choice,
    check_range,
    converted_fields,
    field_names,
    join,
    unknown_name,
)

METRICS_OF_TASK = {
    "pose": ("coco", "pckh", "pck", "nme"),
    "landmarks": ("nme", "pck"),
    "segmentation": ("miou",),
    "classification": ("top_k",),
    "detection": ("detection_ap",),
}
# The metrics' classes, and what the evaluation itself takes beside their arguments.
_METRIC_CLASSES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "coco": ("COCOKeypointAP", ("annotations",)),
    "pckh": ("PCKh", ("head_boxes",)),
    "pck": ("PCK", ("size",)),
    "nme": ("NME", ()),
    "miou": ("ConfusionMatrix", ()),
    "top_k": ("TopKAccuracy", ()),
    "detection_ap": ("COCODetectionAP", ()),
}
_OF_DATA = ("annotations", "classes", "ignore_label", "kind")
_KEYPOINT_LOSSES = ("keypoint_mse", "keypoint_ohkm", "landmark_mse")
LOSSES_OF_TASK = {
    "pose": _KEYPOINT_LOSSES,
    "landmarks": _KEYPOINT_LOSSES,
    "segmentation": ("pixel_cross_entropy", "ohem_cross_entropy"),
    "classification": ("cross_entropy",),
    "detection": ("detection_losses",),
}
DIVISORS = ("weights", "pixels")
_OF_ALL = ("metric", "metric_options", "best", "batch_size", "flip")
_OF_KEYPOINTS = (*_OF_ALL, "shift", "decode", "whole_pixels", "detections")
_OF_PIXELS = (*_OF_ALL, "scales", "base_size", "window", "stride", "pad_windows", "average", "size")
# Fields that another one has to turn on.
NEEDED_FIELDS = {"shift": "flip", "stride": "window", "pad_windows": "window"}
_USED = {
    "pose": _OF_KEYPOINTS,
    "landmarks": _OF_KEYPOINTS,
    "segmentation": _OF_PIXELS,
    "classification": _OF_ALL,
    "detection": ("metric", "metric_options", "best", "batch_size"),
}


@dataclass(frozen=True)
class KeypointLoss:
    """Arguments of ``keypoint_mse``.

    Attributes:
        weighted: multiply heatmaps and targets by the keypoints' weights (the authors' ``USE_TARGET_WEIGHT``).
        factor: on the loss. mmpose's has no 0.5 in its mean: 2.
    """

    weighted: bool = True
    factor: float = 1.0


@dataclass(frozen=True)
class HardKeypointLoss(KeypointLoss):
    """Arguments of ``keypoint_ohkm``.

    Attributes:
        top_k: keypoints of a picture that count.
    """

    top_k: int = 8


@dataclass(frozen=True)
class LandmarkLoss:
    """``landmark_mse`` has no arguments."""


@dataclass(frozen=True)
class PixelLoss:
    """Arguments of both losses of pixels.

    Attributes:
        class_weights: factor of each class. The authors' Cityscapes code has 19, in plain cross entropy as well.
        output_weights: factor of each of the network's outputs (``LOSS.BALANCE_WEIGHTS``); None for one output.
    """

    class_weights: tuple[float, ...] | None = None
    output_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class PlainPixelLoss(PixelLoss):
    """Arguments of ``pixel_cross_entropy``.

    Attributes:
        divide_by: divisor of the sum: ``"weights"`` of the pixels that are not ignored, or their number; ``"pixels"``,
            the number of all, as in mmsegmentation.
    """

    divide_by: str = "weights"


@dataclass(frozen=True)
class HardPixelLoss(PixelLoss):
    """Arguments of ``ohem_cross_entropy``.

    Attributes:
        threshold: pixels whose class has a lower probability are kept.
        min_kept: pixels to keep at least, of all devices' batches each.
        auxiliary_divide_by: divisor of the auxiliary outputs' cross entropy: ``"pixels"`` as in the authors' code, or
            ``"weights"``.
    """

    threshold: float = 0.9
    min_kept: int = 131_072
    auxiliary_divide_by: str = "pixels"


@dataclass(frozen=True)
class ClassLoss:
    """Arguments of ``cross_entropy``.

    Attributes:
        label_smoothing: share of the target that all classes have together.
    """

    label_smoothing: float = 0.0


@dataclass(frozen=True)
class DetectionLosses:
    """The detector's own losses have no arguments: their kinds and weights are in ``model.options``."""


LOSSES: Mapping[str, type] = {
    "keypoint_mse": KeypointLoss,
    "keypoint_ohkm": HardKeypointLoss,
    "landmark_mse": LandmarkLoss,
    "pixel_cross_entropy": PlainPixelLoss,
    "ohem_cross_entropy": HardPixelLoss,
    "cross_entropy": ClassLoss,
    "detection_losses": DetectionLosses,
}


def filled_loss(task: str, loss: Mapping[str, Any]) -> dict[str, Any]:
    """Return a loss with all its arguments.

    Raises:
        ConfigError: the task has no such loss, or an argument is unknown or out of range.
    """
    arguments = dict(loss)
    kind = arguments.pop("kind", None)
    check_choice(f"loss.kind of task {task}", kind, LOSSES_OF_TASK[task])
    made = LOSSES[kind](**converted_fields(LOSSES[kind], arguments, "loss"))
    if isinstance(made, KeypointLoss):
        check_above_zero("loss.factor", made.factor)
    if isinstance(made, HardKeypointLoss):
        check_range("loss.top_k", made.top_k, 1)
    if isinstance(made, HardPixelLoss):
        check_above_zero("loss.threshold", made.threshold)
        check_range("loss.min_kept", made.min_kept, 1)
        check_choice("loss.auxiliary_divide_by", made.auxiliary_divide_by, DIVISORS)
    if isinstance(made, PlainPixelLoss):
        check_choice("loss.divide_by", made.divide_by, DIVISORS)
    if isinstance(made, ClassLoss):
        check_range("loss.label_smoothing", made.label_smoothing, 0, 1, open_end=True)
    return {"kind": kind, **dataclasses.asdict(made)}


def inputs_class(task: str) -> type:
    """Return the class that makes the inputs of a task."""
    from hrnet_fast.datasets import ClassificationCrops, KeypointCrops, SegmentationCrops
    from hrnet_fast.detection.training_inputs import DetectionScaling

    others = {"segmentation": SegmentationCrops, "classification": ClassificationCrops, "detection": DetectionScaling}
    return others.get(task, KeypointCrops)


def make_inputs(task: str, inputs: Mapping[str, Any], **changes: Any) -> Any:
    """Return the object that makes inputs, with fields changed.

    Raises:
        ConfigError: a field is unknown, has another type or is out of range.
    """
    cls = inputs_class(task)
    try:
        return cls(**converted_fields(cls, inputs, "inputs") | changes)
    except InputError as error:
        raise ConfigError(f"inputs: {error}") from error


def filled_inputs(task: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a task's inputs, with all their defaults.

    Raises:
        ConfigError: as :func:`make_inputs`.
    """
    pairs = {"flip_pairs": ()} if task in ("pose", "landmarks") and not inputs.get("flip_pairs") else {}
    fields: dict[str, Any] = dataclasses.asdict(make_inputs(task, inputs, **pairs))
    return fields | dict.fromkeys(pairs, inputs.get("flip_pairs"))


def check_metric_options(evaluation: EvaluationRecipe) -> None:
    """Raise ConfigError unless the metric takes the options: its class's arguments, and a few of the evaluation's."""
    from hrnet_fast import metrics

    name, others = _METRIC_CLASSES[evaluation.metric]
    parameters = list(inspect.signature(getattr(metrics, name)).parameters)
    accepted = [*(p for p in parameters if p not in _OF_DATA), *others]
    for key in evaluation.metric_options:
        if key not in accepted:
            raise unknown_name("evaluation.metric_options", key, accepted)


def check_unused(task: str, evaluation: EvaluationRecipe) -> None:
    """Raise ConfigError unless the fields that a task or another field leaves unused have their default."""
    default = EvaluationRecipe(evaluation.metric)
    for name in field_names(EvaluationRecipe):
        value = getattr(evaluation, name)
        if name not in _USED[task] and value != getattr(default, name):
            raise ConfigError(
                f"{join('evaluation', name)}={shown(value)}: the task {task} does not use it; remove it. Used are "
                f"{', '.join(_USED[task])}."
            )
    for name, needed in NEEDED_FIELDS.items():
        value, usual = getattr(evaluation, name), getattr(default, name)
        if not getattr(evaluation, needed) and value != usual:
            raise ConfigError(
                f"evaluation.{name}={shown(value)}: nothing uses it without evaluation.{needed}; remove it, give its "
                f"default {shown(usual)}, or give evaluation.{needed}."
            )
