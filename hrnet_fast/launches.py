"""Numbers of launches of networks: operator calls of PyTorch, steps of the plan, and launches with grouped branches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.measure import operator_calls
from hrnet_fast.models import HRNet
from hrnet_fast.models.registry import get_variant
from hrnet_fast.skip_init import meta_device

# One network of each task, at the paper's (height, width).
NETWORKS: dict[str, tuple[int, int]] = {
    "hrnetv1_w32_pose": (256, 192),
    "hrnetv1_w48_pose": (384, 288),
    "hrnet_w18_c": (224, 224),
    "hrnetv2_w48_seg": (512, 1024),
    "hrnetv2_w48_seg_ocr": (512, 1024),
    "hrnetv2p_w32_det": (800, 1344),
    "hrnetv2_w18_face": (256, 256),
}


@dataclass(frozen=True)
class LaunchesRow:
    """One network on one image of (H, W).

    Attributes:
        operator_calls: computing operators that PyTorch dispatches for a plain forward.
        steps: of the plan, imports and exports included.
        grouped: launches where parallel 3x3 convolutions of the branches are one.
    """

    model: str
    input_size: tuple[int, int]
    operator_calls: int
    steps: int
    grouped: int


def launches_row(name: str) -> LaunchesRow:
    """Count one network of :data:`NETWORKS`, on the meta device."""
    size = NETWORKS[name]
    with meta_device(), torch.no_grad():
        model = HRNet(get_variant(name).make(), impl="reference").eval()
        x = torch.empty(1, 3, *size)
        calls = operator_calls(lambda: model(x))
    plan = make_plan(model, (1, 3, *size), torch.float32)
    return LaunchesRow(name, size, calls, plan.launches(), plan.launches(grouped=True))
