"""Inputs of detectors that are refused: pictures, sizes and targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detectors import target, tiny_detector
from tiny_networks import image

from hrnet_fast.detection import ImageMeta, Target
from hrnet_fast.detection.pictures import fitted_size
from hrnet_fast.errors import InputError

OBJECTS = [[8.0, 8.0, 60.0, 50.0], [40.0, 30.0, 120.0, 90.0]]

BAD: dict[str, tuple[str, Any]] = {
    "an array": ("accepted is a normalised batch", lambda m: m(np.zeros((3, 8, 8)))),
    "no picture": ("no picture", lambda m: m([])),
    "floating pixels": ("accepted are a path", lambda m: m([np.zeros((8, 8, 3))])),
    "a missing file": ("no such image", lambda m: m(["nowhere.png"])),
    "too few sizes": ("need as many ImageMeta", lambda m: m.predict(image(batch=2), [ImageMeta((64, 64))])),
    "a size beyond": ("does not lie in the batch", lambda m: m.predict(image(), [ImageMeta((65, 64))])),
    "a scale of zero": ("must be positive", lambda m: m.predict(image(), [ImageMeta((64, 64), None, (0.0, 1.0))])),
    "too few targets": ("need as many Target", lambda m: m.losses(image(batch=2), [target([])])),
    "a label too high": ("labels from 0 to 2", lambda m: m.losses(image(), [labelled(3)])),
    "a negative label": ("labels from 0 to 2", lambda m: m.losses(image(), [labelled(-1)])),
    "a box of three": (r"\[M, 4\]", lambda m: m.losses(image(), [Target(torch.zeros(1, 3), torch.zeros(1).long())])),
    "no masks": ("needs masks", lambda m: m.losses(image(), [Target(torch.zeros(0, 4), torch.zeros(0).long())])),
    "no image": ("has no image", lambda m: m(image()[:0])),
    "a scale of a number": ("two finite numbers", lambda m: m.predict(image(), [scaled(2.0)])),
    "a scale of NaN": ("two finite numbers", lambda m: m.predict(image(), [scaled((float("nan"), 1.0))])),
    "a scale alone": ("needs original_size", lambda m: m.predict(image(), [scaled((2.0, 2.0), None)])),
    "boxes of numpy": (
        "boxes .*; accepted is a tensor",
        lambda m: m.losses(image(), [replaced("boxes", np.ones((1, 4)))]),
    ),
    "a list of labels": (r"labels \[0\]; accepted is a", lambda m: m.losses(image(), [replaced("labels", [0])])),
    "a list of masks": ("masks .*; accepted is a", lambda m: m.losses(image(), [replaced("masks", [None] * 20)])),
    "boolean labels": ("torch.bool", lambda m: m.losses(image(), [replaced("labels", torch.ones(1).bool())])),
    "masks of another size": (r"sizes from the image's \(64, 64\)", lambda m: m.losses(image(), [masks_of((48, 64))])),
    "masks beyond the batch": ("to the batch's", lambda m: m.losses(image(), [masks_of((64, 96))])),
}


def test_sizes_are_of_the_long_and_the_short_side_in_either_order() -> None:
    assert fitted_size((480, 640), 800, 1333) == fitted_size((480, 640), 1333, 800) == (800, 1067)


def labelled(label: int) -> Target:
    return dataclasses.replace(target([OBJECTS[0]]), labels=torch.tensor([label]))


def replaced(name: str, value: Any) -> Target:
    return dataclasses.replace(target([OBJECTS[0]], (64, 64)), **{name: value})


def scaled(scale: Any, original: tuple[int, int] | None = (32, 32)) -> ImageMeta:
    return ImageMeta((64, 64), original, scale)


def masks_of(size: tuple[int, int]) -> Target:
    return target([OBJECTS[0]], size)


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    message, call = BAD[case]
    with pytest.raises(InputError, match=message):
        call(tiny_detector("mask_rcnn"))


def test_pictures_for_another_number_of_channels() -> None:
    """They are refused, while a batch with these channels is accepted."""
    model = tiny_detector("faster_rcnn", in_channels=1)
    with pytest.raises(InputError, match="this backbone takes 1"):
        model([np.zeros((64, 64, 3), np.uint8)])
    assert len(model(image(64, 64)[:, :1])) == 1


def test_semantic_labels() -> None:
    """They are classes of the branch, or its mark of pixels without a class."""
    model = tiny_detector("htc").train()
    classes = model.config.roi.semantic.num_classes
    objects = target([OBJECTS[0]], (64, 64))
    objects.semantic[0, :2] = torch.tensor([classes - 1, 255])
    model.losses(image(), [objects])
    for wrong in (-1, classes):
        objects.semantic[0, 0] = wrong
        with pytest.raises(InputError, match=f"other than 0 to {classes - 1} and 255"):
            model.losses(image(), [objects])
