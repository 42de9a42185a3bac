"""Networks with random weights, the input image, float64 results and costs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import hrnet_fast as hf
from hrnet_fast.demo.measurement import demo_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(name: str) -> nn.Module:
    """Return a named network of this package, ``impl="reference"``, with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return hf.create_model(name, impl="reference").eval()


@functools.cache
def _photograph() -> Tensor:
    image = torch.from_numpy(np.array(demo_image(None)[0].convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (image - mean) / std


def images(batch: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return the photograph, normalised and resized to (H, W), [N, 3, H, W]; each image is shifted by some pixels."""
    one = F.interpolate(_photograph(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return torch.cat([one.roll(7 * k, dims=3) for k in range(batch)]).to(device)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def exact(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what the model computes on `x` in float64, on the CPU."""
    with torch.no_grad():
        return tensors(model.cpu().double()(x.cpu().double()))


def work(model: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Return FLOPs of a call (two per multiply-add), and the least bytes it moves: weights, input and outputs, once.

    Changes the model.
    """
    meta = model.to("meta")
    weights = sum(p.numel() for p in meta.parameters())
    for parent in list(meta.modules()):
        for name, layer in parent.named_children():
            # Their FLOPs are not counted, and they take most of the time on the meta device.
            if isinstance(layer, (nn.BatchNorm2d, nn.ReLU)):
                setattr(parent, name, nn.Identity())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = meta(torch.empty_like(x, device="meta", dtype=next(meta.parameters()).dtype))
    moved = weights + x.numel() + sum(t.numel() for t in tensors(out))
    return {"flops": float(counter.get_total_flops()), "bytes": float(moved * dtype.itemsize)}
