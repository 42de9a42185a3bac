"""Draws each task's result on the photograph."""

from __future__ import annotations

import torch
from PIL import Image

from hrnet_fast.models import HRNet
from hrnet_fast.tasks import TASKS, Options
from hrnet_fast.tasks.images import to_tensor


def picture_of(task: str, model: HRNet, photo: Image.Image) -> Image.Image:
    """Return the photograph with the task's result drawn on it."""
    model = model.cpu()
    if model.config.head.kind in TASKS[task].heads:
        # Every keypoint is drawn, whatever its confidence.
        return TASKS[task].predict(model, photo, Options(threshold=float("-inf"))).picture
    return _pyramid(model, photo)


def _pyramid(model: HRNet, photo: Image.Image) -> Image.Image:
    """Return the levels of a detection pyramid side by side: mean magnitude over channels, each scaled to [0, 255]."""
    width, height = (max(32, side // 32 * 32) for side in photo.size)
    levels = model(to_tensor(photo.resize((width, height))))
    side = Image.new("L", (0, height))
    for level in levels:
        magnitude = level[0].abs().mean(dim=0)
        low, high = magnitude.amin(), magnitude.amax()
        grey = ((magnitude - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8).cpu().numpy()
        tile = Image.fromarray(grey).resize((width, height), Image.Resampling.NEAREST)
        joined = Image.new("L", (side.width + width, height))
        joined.paste(side, (0, 0))
        joined.paste(tile, (side.width, 0))
        side = joined
    return side.convert("RGB")
