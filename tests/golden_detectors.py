"""Golden detectors: weights and inputs by names and shapes, and what mmdetection 3.3 computes of them in float64."""

from __future__ import annotations

import functools
import json
import re
import zlib
from typing import Any

import numpy as np
import torch
from golden_data import FOLDER, fill, image
from torch import Tensor

from hrnet_fast.detection import Detector, ImageMeta, Target, make_detector_config
from hrnet_fast.skip_init import skip_init

Shape = tuple[int, ...]
CLASSES, WIDTH = 5, 18


@functools.cache
def _facts() -> dict[str, Any]:
    return json.loads((FOLDER / "detectors" / "detectors.json").read_text())


@functools.cache
def results(kind: str) -> dict[str, np.ndarray]:
    """Return the recorded arrays of a detector by name."""
    with np.load(FOLDER / "detectors" / "detectors.npz") as stored:
        return {name.split("/")[1]: stored[name] for name in stored.files if name.split("/")[0] == kind}


def shapes(kind: str) -> dict[str, Shape]:
    """Return the names and shapes of mmdetection's state_dict, in its order."""
    lines = results(kind)["keys"].tobytes().decode().splitlines()
    return {line.split(" ")[0]: tuple(map(int, line.split(" ")[1:] if line[-1] != " " else ())) for line in lines}


def _weight(key: str, shape: Shape, rule: str) -> Tensor:
    value = fill(key, shape).numpy()
    if rule:
        _, factor, offset = json.loads(rule)
        value = np.asarray(np.float32(factor) * value + np.asarray(offset, np.float32), np.float32)
    return torch.from_numpy(np.asarray(value))


def state(kind: str, *, heads: bool) -> dict[str, Tensor]:
    """Return the weights of a detector, or of its heads alone: :func:`golden_data.fill`, some scaled or shifted."""
    rules = _facts()[kind]["weight_rules"]
    found = {}
    for key, shape in shapes(kind).items():
        if heads and key.startswith(("backbone.", "neck.")):
            continue
        rule = next((json.dumps(rule) for rule in rules if re.fullmatch(rule[0], key)), "")
        found[key] = _weight(key, shape, rule)
    return found


def detector(kind: str, *, heads: bool = False) -> Detector:
    """Return a detector in evaluation mode; with `heads`, its backbone and neck have no defined weights."""
    with skip_init():
        made = Detector(make_detector_config(kind, WIDTH, CLASSES), impl="reference")
    assert made.load_state_dict(state(kind, heads=heads), strict=not heads).unexpected_keys == []
    return made.double().eval()


def batch(image_shapes: list[list[int]]) -> Tensor:
    """Return images as float64, padded right and below to a multiple of 32 of the largest."""
    high, wide = (-(-max(shape[k] for shape in image_shapes) // 32) * 32 for k in (2, 3))
    out = torch.zeros(len(image_shapes), 3, high, wide, dtype=torch.float64)
    for i, shape in enumerate(image_shapes):
        out[i, :, : shape[2], : shape[3]] = image(tuple(shape))[0]
    return out


def meta(values: dict[str, Any]) -> ImageMeta:
    keys = ("img_shape", "ori_shape", "scale_factor", "pad_shape")
    return ImageMeta(*(tuple(values[key]) for key in keys))


def evaluation(kind: str) -> tuple[Tensor, list[ImageMeta]]:
    return batch([_facts()[kind]["image"]]), [meta(_facts()[kind]["meta"])]


def training(kind: str) -> tuple[Tensor, list[Target], list[ImageMeta]]:
    case = _facts()[kind]["train"]
    targets = [
        Target(torch.tensor(one["bboxes"], dtype=torch.float64), torch.tensor(one["labels"])) for one in case["objects"]
    ]
    return batch(case["images"]), targets, [meta(values) for values in case["metas"]]


def fingerprint(tensor: Tensor) -> Tensor:
    """Return mean, population standard deviation and the values at 64 positions."""
    shape = tuple(tensor.shape)
    positions = np.random.default_rng(zlib.crc32(("probe" + repr(shape)).encode())).integers(0, tensor.numel(), 64)
    flat = tensor.detach().flatten()
    return torch.cat([torch.stack([flat.mean(), flat.std(correction=0)]), flat[torch.from_numpy(positions)]])


def distance(actual: Tensor, expected: np.ndarray) -> float:
    """Return the largest difference in units of the largest expected value."""
    wanted = torch.from_numpy(expected)
    assert actual.shape == wanted.shape
    return float((actual.detach() - wanted).abs().max() / wanted.abs().max())
