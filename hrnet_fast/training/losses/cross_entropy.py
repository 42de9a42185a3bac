"""Cross entropy of every pixel, with class weights and an ignored label, at the resolution of the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.checks import check_bool, check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.training.losses.upsampling import upsample_logits

LABELS = (torch.int64, torch.int32, torch.int16, torch.uint8)
DIVISORS = ("weights", "pixels")


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    *,
    ignore_label: int = 255,
    divide_by: str = "weights",
    align_corners: bool = False,
) -> Tensor:
    """Return the mean cross entropy of all pixels whose label is not ignored; logits are upsampled to the labels' size.

    The authors' ``CrossEntropy`` (segmentation repository, ``lib/core/criterion.py``). The sums are taken here and not
    by ``nll_loss``, whose mean on CUDA adds atomically.

    Args:
        logits: [N, K, h, w], floating.
        labels: [N, H, W], int64, int32, int16 or uint8, on the device of `logits`: classes from 0 to K - 1, or
            `ignore_label`. The kernels check them where they use them: other values raise InputError on a CPU, and fail
            a device-side assertion of PyTorch's on CUDA. An earlier check would wait for the device.
        class_weights: [K], floating, on the device of `logits`: factors of the pixels' losses. No gradient flows to
            them.
        ignore_label: of pixels without a class: 255 in the authors' Cityscapes and LIP, -1 in their PASCAL-Context.
        divide_by: ``"weights"``: the sum of the class weights of the pixels that count, which is their number without
            weights, as :class:`torch.nn.CrossEntropyLoss` does. ``"pixels"``: the number of all pixels, ignored ones
            included, as the authors' ``OhemCrossEntropy`` comes to do for auxiliary outputs.
        align_corners: of the upsampling: True in the authors' OCR networks, False in their others.

    Returns:
        A scalar in float32, in float64 for float64 logits. Where all pixels are ignored, NaN by ``"weights"``, as in
        PyTorch, with gradients of 0.

    Raises:
        InputError: tensors of other shapes, types or devices, or without elements; labels out of range on a CPU.
    """
    what = "pixel_cross_entropy"
    check_pixels(what, logits, labels, class_weights, ignore_label, align_corners)
    if divide_by not in DIVISORS:
        raise InputError(f"{what}: divide_by={shown(divide_by)}; accepted are 'weights' and 'pixels'.")
    wide, labels = at_labels(logits, labels, align_corners)
    total = pixel_losses(what, wide, labels, class_weights, ignore_label).sum()
    if divide_by == "pixels":
        return total / labels.numel()
    counted = labels != ignore_label
    if class_weights is None:
        return total / counted.sum()
    with_ignored = F.pad(class_weights.detach().to(wide.dtype), (0, 1))  # [K + 1]: 0 for ignored pixels
    return total / with_ignored.take(torch.where(counted, labels, len(class_weights))).sum()


class PixelCrossEntropyLoss(nn.Module):
    """:func:`pixel_cross_entropy` as a module; arguments are that function's.

    The weights are a buffer, which moves with the module and is not in its ``state_dict``.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Tensor | None = None,
        *,
        ignore_label: int = 255,
        divide_by: str = "weights",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        check_tensor("PixelCrossEntropyLoss", "class_weights", class_weights, optional=True)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.ignore_label, self.divide_by, self.align_corners = ignore_label, divide_by, align_corners

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return pixel_cross_entropy(
            logits, labels, self.class_weights, ignore_label=self.ignore_label, divide_by=self.divide_by,
            align_corners=self.align_corners,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"ignore_label={self.ignore_label}, divide_by={self.divide_by!r}, align_corners={self.align_corners}"


def at_labels(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Return logits [N, K, H, W] in float32 or float64 at the size of the labels, and labels in int64."""
    size = (labels.shape[1], labels.shape[2])
    return upsample_logits(logits, size, align_corners=align_corners), labels.long()


def pixel_losses(what: str, wide: Tensor, labels: Tensor, class_weights: Tensor | None, ignore_label: int) -> Tensor:
    """Return the weighted cross entropy of every pixel [N, H, W], 0 where the label is ignored.

    Raises:
        InputError: a label that is no class, on a CPU.
    """
    weights = None if class_weights is None else class_weights.detach().to(wide.dtype)
    try:
        return F.nll_loss(wide.log_softmax(1), labels, weights, ignore_index=ignore_label, reduction="none")
    except IndexError as error:  # "Target 30 is out of bounds."
        raise InputError(
            f"{what}: {str(error).rstrip('.').lower()}; labels are 0 to {wide.shape[1] - 1} or "
            f"ignore_label={ignore_label}."
        ) from error


def check_pixels(
    what: str, logits: Any, labels: Any, class_weights: Any, ignore_label: Any, align_corners: Any
) -> None:
    """Raise InputError unless the arguments of a loss of pixels belong together."""
    check_tensor(what, "logits", logits)
    check_tensor(what, "labels", labels)
    check_tensor(what, "class_weights", class_weights, optional=True)
    check_bool(what, align_corners=align_corners)
    if not isinstance(ignore_label, int) or isinstance(ignore_label, bool):
        raise InputError(f"{what}: ignore_label={shown(ignore_label)} must be an integer.")
    if logits.dim() != 4 or not logits.is_floating_point() or logits.numel() == 0:
        raise InputError(
            f"{what}: logits are {logits.dtype} {list(logits.shape)}; accepted are floating [N, K, h, w] with one "
            "element or more."
        )
    n, classes = logits.shape[:2]
    if (
        labels.dim() != 3 or labels.shape[0] != n or labels.numel() == 0 or labels.dtype not in LABELS
        or labels.device != logits.device
    ):  # fmt: skip
        raise InputError(
            f"{what}: labels are {labels.dtype} {list(labels.shape)} on {labels.device}; accepted are "
            f"[{n}, H, W] in int64, int32, int16 or uint8 on {logits.device}, as the logits are."
        )
    if class_weights is not None and (
        class_weights.shape != (classes,) or not class_weights.is_floating_point()
        or class_weights.device != logits.device
    ):  # fmt: skip
        raise InputError(
            f"{what}: class_weights are {class_weights.dtype} {list(class_weights.shape)} on {class_weights.device}; "
            f"they must be floating [{classes}] on {logits.device}. A loss module moves with loss.to(device)."
        )
