"""Small networks with every part of the large ones, weights that keep activations alive, comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import hrnet_fast as hf

ALL_HEADS = ("features", "v1", "v1h", "v2", "v2p", "ocr", "face", "higher", "c", "ci", "cii")
SIZES: dict[str, Any] = {
    "num_blocks": 1,
    "num_modules": (1, 1, 1),
    "stage1_channels": 4,
    "stage1_blocks": 1,
    "stem_channels": 8,
}


def tiny_config(head: str = "v1", num_outputs: int | None = None, width: int = 4, **changes: Any) -> hf.HRNetConfig:
    if num_outputs is None:
        num_outputs = 0 if head in ("features", "v2p") else 3
    if head == "ocr":
        changes = {"channels": 16, "key_channels": 8} | changes
    if head == "higher":
        changes = {"deconvs": (hf.DeconvConfig(width, num_blocks=1),)} | changes
    if head == "v2p":
        changes = {"channels": 16} | changes
    return hf.HRNetConfig.make(width, head, num_outputs, **(SIZES | changes))


def tiny(head: str = "v1", num_outputs: int | None = None, width: int = 4, **changes: Any) -> hf.HRNet:
    """Return a network in evaluation mode whose every tensor matters to its output."""
    return enliven(hf.HRNet(tiny_config(head, num_outputs, width, **changes))).eval()


def two_stages(head: str = "v1", **changes: Any) -> hf.HRNet:
    """Return the smallest network with a fusion: quick to trace and to compile."""
    config = tiny_config(head)
    config = config.override(stages=config.stages[:2], **changes)
    return enliven(hf.HRNet(config)).eval()


def enliven(model: Any, seed: int = 0) -> Any:
    """Draw weights, scales, shifts and statistics that neither vanish nor explode through depth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.dim() == 1 and key.endswith("weight"):
                value.uniform_(0.5, 1.0, generator=generator)
            elif value.dim() <= 1:
                value.normal_(0.0, 0.1, generator=generator)
            else:
                value.normal_(0.0, 0.8 / value[0].numel() ** 0.5, generator=generator)
    return model


def image(height: int = 64, width: int = 64, batch: int = 1, channels: int = 3, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, height, width, generator=generator, **options)


def maps(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """Return the distance in units of the expected norm; infinite where anything is not finite."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape
    assert expected.norm() > 0
    distance = ((actual - expected).norm() / expected.norm()).item()
    return distance if torch.isfinite(actual).all() else float("inf")


def assert_same(actual: Any, expected: Any) -> None:
    """Outputs of one type, with equal maps."""
    assert type(actual) is type(expected)
    for a, e in zip(maps(actual), maps(expected), strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def train_once(model: nn.Module, x: Tensor) -> list[Tensor]:
    """One forward and backward in training mode; the loss weighs every output pixel differently."""
    model.train()
    outputs = maps(model(x))
    weights = [torch.linspace(-1.0, 2.0, o.numel(), dtype=o.dtype).view_as(o) for o in outputs]
    sum((o * w).mean() for o, w in zip(outputs, weights, strict=True)).backward()  # type: ignore[union-attr]
    return [o.detach() for o in outputs]
