"""What a task is, what goes into it beside the image, and what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from hrnet_fast.config import HRNetConfig
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import Box
from hrnet_fast.tasks.pixels import STATISTICS, check_channels


@dataclass(frozen=True)
class Options:
    """Choices; :attr:`Task.options` says which of them a task heeds.

    Attributes:
        size: (H, W) that the network sees; None is the task's own.
        boxes: persons or faces in the image; empty is the whole image.
        flip: average with the mirrored image's answer.
        labels: class names by index.
        top: how many classes to name.
        threshold: keypoints below this heatmap value are not drawn.
        decode: how keypoints are read from heatmaps, a name in :data:`hrnet_fast.keypoints.METHODS`; None is the
            network's own.
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
    """A task's answer.

    Attributes:
        data: plain values, for JSON; coordinates are pixels of the original image.
        picture: the image with the answer drawn on it.
        maps: further images to keep, by suffix (a segmentation's label map).
    """

    data: dict[str, Any]
    picture: Image.Image
    maps: dict[str, Image.Image] = field(default_factory=dict)


class Network(Protocol):
    """What answers: a :class:`hrnet_fast.HRNet`, or an engine made of one (:class:`EngineRunner`)."""

    @property
    def config(self) -> HRNetConfig: ...
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
    """A task and what it takes.

    Attributes:
        predict: from network, image and options to the answer.
        heads: head kinds that answer it.
        options: fields of :class:`Options` that it heeds.
        maps: suffixes of the further images that every answer has.
        network: fields of :class:`HRNetConfig` that change its answers and that files do not tell.
    """

    predict: Predictor
    heads: tuple[str, ...]
    options: tuple[str, ...]
    maps: tuple[str, ...] = ()
    network: tuple[str, ...] = ()


def all_assumptions(model: Network) -> tuple[str, ...]:
    """Return what neither file nor caller told and a default decided: of the network, and of its input."""
    channels = model.config.in_channels
    if channels == 3:
        return model.assumptions
    mean, std = STATISTICS[channels]
    told = ", ".join(f"({m:g}, {s:g})" for m, s in zip(mean, std, strict=True))
    return (
        *model.assumptions,
        f"assumed, as a file does not tell: input in [0, 1] normalised by (mean, std) of {told}",
    )


def check_head(model: Network, heads: tuple[str, ...], task: str, source: str | os.PathLike[str]) -> None:
    """Compare the head of `source`'s network with those that can do the task, and its input with pictures.

    Raises:
        InputError: it is none of `heads`, or takes channels that pictures do not have.
    """
    kind = model.config.head.kind
    if kind not in heads:
        raise InputError(
            f"{source}: a {model.family} checkpoint ({kind} head) cannot do {task}; that takes one with a "
            f"{' or '.join(heads)} head."
        )
    check_channels(model.config.in_channels)
