"""``Task``, its ``Options`` and its ``Prediction``; the protocol of its network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import Box
from hrnet_fast.tasks.pixels import STATISTICS, check_channels


@dataclass(frozen=True)
class Options:
    """Options of the tasks; :attr:`Task.options` lists those that a task uses.

    Attributes:
        size: (H, W) of the network input; None takes the task's default.
        boxes: (left, top, width, height) of persons or faces in image pixels; empty takes the whole image.
        flip: average with the prediction for the mirrored image.
        labels: class names by index.
        top: number of classes to return.
        threshold: keypoints below this heatmap value, and objects below this score, are not drawn.
        decode: method to decode heatmaps, a name in :data:`hrnet_fast.keypoints.METHODS`; None takes the network's.
    """

    size: tuple[int, int] | None = None
    boxes: tuple[Box, ...] = ()
    flip: bool = False
    labels: tuple[str, ...] = ()
    top: int = 5
    threshold: float = 0.2
    decode: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The result of a task on one image.

    Attributes:
        data: plain values for JSON; coordinates are pixels of the original image.
        picture: the image with the prediction drawn on it.
        maps: further images by file suffix (the label map of a segmentation).
    """

    data: dict[str, Any]
    picture: Image.Image
    maps: dict[str, Image.Image] = field(default_factory=dict)


class Network(Protocol):
    """A callable network: an ``HRNet`` or a ``Detector``, or an engine of one (:class:`EngineRunner`)."""

    @property
    def config(self) -> Any: ...
    @property
    def family(self) -> str | None: ...
    @property
    def keypoints(self) -> str | None: ...
    @property
    def assumptions(self) -> tuple[str, ...]: ...
    def __call__(self, x: Any) -> Any: ...


Predictor = Callable[[Network, Image.Image, Options], Prediction]


@dataclass(frozen=True)
class Task:
    """A task: its function, and the heads and options that it supports.

    Attributes:
        predict: function of network, image and options.
        heads: head kinds that it accepts, or kinds of detectors.
        options: fields of :class:`Options` that it uses.
        maps: suffixes of the further images of each prediction.
        network: fields of :class:`HRNetConfig` that the caller of ``load_checkpoint`` may give for it.
    """

    predict: Predictor
    heads: tuple[str, ...]
    options: tuple[str, ...]
    maps: tuple[str, ...] = ()
    network: tuple[str, ...] = ()


def all_assumptions(model: Network) -> tuple[str, ...]:
    """Return messages on settings of the network and its input that took a default."""
    channels = model.config.in_channels
    if channels == 3:
        return model.assumptions
    mean, std = STATISTICS[channels]
    statistics = ", ".join(f"({m:g}, {s:g})" for m, s in zip(mean, std, strict=True))
    return (
        *model.assumptions,
        f"assumed, as a file does not tell: input in [0, 1] normalised by (mean, std) of {statistics}",
    )


def check_head(model: Network, heads: tuple[str, ...], task: str, source: str | os.PathLike[str]) -> None:
    """Check that the network of `source` has a head for the task and takes images as input.

    Raises:
        InputError: the head is none of `heads`, or the number of input channels is not 1, 3 or 4.
    """
    kind = model.config.kind if isinstance(model.config, DetectorConfig) else model.config.head.kind
    if kind not in heads:
        raise InputError(
            f"{source}: a {model.family} checkpoint ({kind} head) cannot do {task}; that takes one with a "
            f"{' or '.join(heads)} head."
        )
    check_channels(model.config.in_channels)
