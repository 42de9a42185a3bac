"""Losses with arguments, for tests on the CPU and the null device; the formulas of the authors' code, written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.training import losses

CLASSES = 5


class LossCase(NamedTuple):
    """A loss of one differentiable tensor, or of a list of them, and its other arguments."""

    loss: Callable[..., Tensor]
    predictions: list[Tensor]
    others: tuple[Tensor, ...]
    several: bool = False

    def __call__(self, *predictions: Tensor) -> Tensor:
        return self.loss(list(predictions) if self.several else predictions[0], *self.others)

    def to(self, device: str | None = None, dtype: torch.dtype | None = None) -> LossCase:
        """The same with predictions as leaves of that device and dtype."""
        leaves = [p.detach().to(device, dtype).requires_grad_() for p in self.predictions]
        loss = self.loss.to(device) if isinstance(self.loss, torch.nn.Module) else self.loss
        return LossCase(loss, leaves, tuple(o.to(device) for o in self.others), self.several)


def pixels(size: tuple[int, int] = (13, 17), ignored: float = 0.2, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Logits [2, K, 4, 5] in float64 and labels [2, *size], of which a share is 255."""
    labels = torch.randint(classes, (2, *size))
    labels[torch.rand(labels.shape) < ignored] = 255
    return torch.randn(2, classes, 4, 5, dtype=torch.float64), labels


def heatmaps() -> tuple[Tensor, Tensor, Tensor]:
    """Heatmaps and targets [3, 6, 8, 7] in float64, and weights [3, 6], some of them 0."""
    weights = torch.rand(3, 6, dtype=torch.float64) * (torch.rand(3, 6) > 0.3)
    return torch.randn(3, 6, 8, 7, dtype=torch.float64), torch.rand(3, 6, 8, 7, dtype=torch.float64), weights


def loss_cases() -> dict[str, LossCase]:
    """One case of every loss, in float64."""
    torch.manual_seed(1)
    maps, targets, weights = heatmaps()
    logits, labels = pixels()
    of_classes = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    ohem = losses.OHEMCrossEntropyLoss(of_classes, threshold=0.1, min_kept=150, align_corners=True)
    pair = [logits, torch.randn_like(logits)]
    return {
        "keypoint": LossCase(losses.KeypointMSELoss(), [maps], (targets, weights)),
        "keypoint without weights": LossCase(losses.KeypointMSELoss(), [maps], (targets,)),
        "ohkm": LossCase(losses.KeypointOHKMLoss(4), [maps], (targets, weights)),
        "landmark": LossCase(losses.LandmarkMSELoss(), [maps], (targets,)),
        "cross entropy": LossCase(losses.PixelCrossEntropyLoss(of_classes), [logits], (labels,)),
        "cross entropy by pixels": LossCase(losses.PixelCrossEntropyLoss(divide_by="pixels"), [logits], (labels,)),
        "ohem": LossCase(ohem, [logits], (labels,)),
        "ocr": LossCase(losses.AuxiliaryLoss(losses.PixelCrossEntropyLoss()), pair, (labels,), True),
        "ocr ohem": LossCase(losses.AuxiliaryLoss(ohem, losses.PixelCrossEntropyLoss()), pair, (labels,), True),
    }


def plain_keypoint_mse(maps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    per_keypoint = [
        0.5 * ((maps[:, k] * w - targets[:, k] * w) ** 2).mean()
        for k in range(maps.shape[1])
        for w in [weights[:, k, None, None]]
    ]
    return sum(per_keypoint) / maps.shape[1]  # type: ignore[return-value]


def plain_ohkm(maps: Tensor, targets: Tensor, weights: Tensor, top_k: int) -> Tensor:
    of_images = []
    for n in range(len(maps)):
        errors = [0.5 * ((weights[n, k] * (maps[n, k] - targets[n, k])) ** 2).mean() for k in range(maps.shape[1])]
        of_images.append(sum(sorted(errors, reverse=True)[:top_k]) / top_k)
    return sum(of_images) / len(of_images)  # type: ignore[return-value]


def plain_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, align: bool) -> tuple[Tensor, Tensor]:
    """Weighted losses [M] of the M labelled pixels and their weights, by the definition."""
    large = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=align)
    rows, classes = large.permute(0, 2, 3, 1)[labels != 255], labels[labels != 255]
    own = rows[torch.arange(len(rows)), classes]
    return weights[classes] * (rows.exp().sum(1).log() - own), weights[classes]


def plain_ohem(logits: Tensor, labels: Tensor, weights: Tensor, threshold: float, min_kept: int) -> Tensor:
    """By sorting and selecting, as the authors do; logits at the size of the labels."""
    of_pixels, _ = plain_cross_entropy(logits, labels, weights, False)
    rows, classes = logits.detach().softmax(1).permute(0, 2, 3, 1)[labels != 255], labels[labels != 255]
    found = rows[torch.arange(len(rows)), classes]
    ascending = found.sort().values
    bound = max(float(ascending[min(min_kept, len(ascending) - 1)]), threshold)
    return of_pixels[found < bound].mean()


def backward(case: Any) -> list[Tensor]:
    """The gradients of a case's predictions."""
    return list(torch.autograd.grad(case(*case.predictions), case.predictions))
