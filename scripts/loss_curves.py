"""Train HRNet on photographs with COCO keypoints, plainly and accelerated, and compare the loss curves.

Give a COCO keypoint annotation file and the folder of its images. Every curve starts from the same weights and sees the
same batches. Two plain runs that sum in different orders (contiguous and channels-last) tell how far rounding alone
drives two curves apart; the accelerated run must stay as near to the first as the second does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import hrnet_fast as hf

SIZE = (256, 192)  # of an image; heatmaps are a quarter


def people(annotations: Path, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Every annotated person as (image [3, H, W], heatmaps [17, H/4, W/4]), cut out and scaled to the input's size."""
    content = json.loads(annotations.read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found = []
    for person in content["annotations"]:
        keypoints = np.array(person.get("keypoints", []), dtype=np.float32).reshape(-1, 3)
        path = folder / names[person["image_id"]]
        if not path.exists() or not (keypoints[:, 2:] > 0).any():
            continue
        x, y, width, height = person["bbox"]
        with Image.open(path) as image:
            box = (max(0.0, x), max(0.0, y), min(image.width, x + width), min(image.height, y + height))
            crop = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.asarray(crop, dtype=np.float32) / 255.0).permute(2, 0, 1)
        found.append(((pixels - 0.45) / 0.225, _heatmaps(keypoints, box)))
    return found


def _heatmaps(keypoints: np.ndarray[Any, Any], box: tuple[float, float, float, float]) -> Tensor:
    height, width = SIZE[0] // 4, SIZE[1] // 4
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    maps = torch.zeros(len(keypoints), height, width)
    for k, (x, y, visible) in enumerate(keypoints):
        if visible > 0:
            cx, cy = (x - box[0]) / (box[2] - box[0]) * width, (y - box[1]) / (box[3] - box[1]) * height
            maps[k] = torch.exp(-((columns - cx) ** 2 + (rows - cy) ** 2) / (2 * 2.0**2))
    return maps


def curve(batches: list[tuple[Tensor, Tensor]], impl: str | None, layout: torch.memory_format, bf16: bool) -> Tensor:
    """The loss of every step; `impl` None trains the plain network."""
    torch.manual_seed(0)
    model = hf.HRNet(width=18, head="v1", num_outputs=17, upsample="nearest", init="kaiming", impl="reference").train()
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    if impl is not None:
        hf.accelerate(model, impl=impl)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for images, heatmaps in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = model(images.to(memory_format=layout))
        loss = (output.float() - heatmaps).square().mean() * 1000
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def main() -> int:
    """Train three times, and say how far the curves lie apart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--impl", default="auto")
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast")
    arguments = parser.parse_args()
    persons = people(arguments.annotations, arguments.images)
    if not persons:
        parser.error(f"{arguments.annotations} names no person with keypoints whose image is in {arguments.images}")
    draw = np.random.default_rng(0)
    batches = []
    for _ in range(arguments.steps):
        chosen = [persons[i] for i in draw.integers(0, len(persons), arguments.batch)]
        batches.append((torch.stack([p[0] for p in chosen]), torch.stack([p[1] for p in chosen])))
    first = curve(batches, None, torch.contiguous_format, arguments.bf16)
    second = curve(batches, None, torch.channels_last, arguments.bf16)
    fast = curve(batches, arguments.impl, torch.contiguous_format, arguments.bf16)
    for k in range(0, arguments.steps, max(1, arguments.steps // 10)):
        print(f"step {k:3d}  plain {first[k]:.6f}  plain, other order {second[k]:.6f}  accelerated {fast[k]:.6f}")
    spread, distance = (second - first).abs(), (fast - first).abs()
    print(f"{len(persons)} people; loss {first[0]:.4f} at the first step, {first[-1]:.4f} at the last")
    print(f"distance from the plain curve: other order mean {spread.mean():.2e}, largest {spread.max():.2e}; "
          f"accelerated mean {distance.mean():.2e}, largest {distance.max():.2e}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
