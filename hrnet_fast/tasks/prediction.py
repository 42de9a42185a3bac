"""What goes into a task beside the image, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from hrnet_fast.models import HRNet

Box = tuple[float, float, float, float]  # left, top, width, height in pixels


@dataclass(frozen=True)
class Options:
    """Choices that a task may heed.

    Attributes:
        size: (H, W) that the network sees; None is the task's own.
        boxes: persons or faces in the image; empty is the whole image.
        flip: average with the mirrored image's answer.
        labels: class names by index.
        top: how many classes to name.
        threshold: keypoints below this heatmap value are not drawn.
    """

    size: tuple[int, int] | None = None
    boxes: tuple[Box, ...] = ()
    flip: bool = False
    labels: tuple[str, ...] = ()
    top: int = 5
    threshold: float = 0.2


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


Predictor = Callable[[HRNet, Image.Image, Options], Prediction]
