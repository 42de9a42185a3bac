"""Small detectors of every kind, in evaluation mode, whose every tensor matters."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tiny_networks import SIZES, enliven

from hrnet_fast.detection import Detector, DetectorConfig, Target, make_detector_config

CLASSES = 3


def tiny_detector_config(kind: str, **changes: Any) -> DetectorConfig:
    config = make_detector_config(kind, 4, CLASSES, channels=8, **SIZES)
    if config.fcos is not None:
        fcos = dataclasses.replace(config.fcos, channels=8, num_convs=1, groups=2)
        return dataclasses.replace(config, fcos=fcos).override(**changes)
    stages = tuple(dataclasses.replace(stage, fc_channels=16) for stage in config.roi.stages)
    parts = {
        name: dataclasses.replace(part, channels=8, num_convs=1)
        for name, part in (("mask", config.roi.mask), ("semantic", config.roi.semantic))
        if part is not None
    }
    roi = dataclasses.replace(config.roi, stages=stages, **parts)
    rpn = dataclasses.replace(config.rpn, channels=8)
    return dataclasses.replace(config, rpn=rpn, roi=roi).override(**changes)


def tiny_detector(kind: str, **changes: Any) -> Detector:
    return enliven(Detector(tiny_detector_config(kind, **changes), impl="reference")).eval()


def target(boxes: list[list[float]], size: tuple[int, int] = (96, 128), **more: Any) -> Target:
    """Objects of classes 0, 1, 2, 0, ...; their masks fill their boxes."""
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size)
    for mask, (x1, y1, x2, y2) in zip(masks, found.round().int().tolist(), strict=True):
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = 1
    semantic = torch.arange(size[1]).repeat(size[0], 1) // 32
    return Target(found, torch.arange(len(boxes)) % CLASSES, masks, semantic=semantic, **more)
