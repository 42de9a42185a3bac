"""Losses between heatmaps: mean squared errors for keypoints, with weights and for the hardest ones, and for faces."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.checks import check_integer, check_tensor
from hrnet_fast.errors import InputError
from hrnet_fast.norm_affine import math_dtype


def keypoint_mse(heatmaps: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over keypoints of 0.5 * MSE, with heatmaps and targets multiplied by the keypoint's weight.

    The authors' ``JointsMSELoss`` (pose repository, ``lib/core/loss.py``); None as `weights` is their
    ``use_target_weight=False``. A keypoint of weight 0 counts in the mean with the error 0.

    Args:
        heatmaps: [N, K, h, w], floating.
        targets: [N, K, h, w], floating, on the device of `heatmaps`.
        weights: [N, K] or [N, K, 1], as :func:`hrnet_fast.encode_keypoints` returns them: the visibility, or that
            times a weight of the keypoint. No gradient flows to them.

    Returns:
        A scalar in float32, in float64 for float64 heatmaps.

    Raises:
        InputError: tensors of other shapes, types or devices, or without elements.
    """
    error = _weighted_error("keypoint_mse", heatmaps, targets, weights)
    return 0.5 * error.square().mean()


def keypoint_ohkm(heatmaps: Tensor, targets: Tensor, weights: Tensor | None = None, *, top_k: int = 8) -> Tensor:
    """Return :func:`keypoint_mse` of the `top_k` keypoints with the largest error in each image.

    Online hard keypoint mining: the authors' ``JointsOHKMMSELoss`` (pose repository, ``lib/core/loss.py``).

    Args:
        heatmaps, targets, weights: as :func:`keypoint_mse` takes them.
        top_k: how many keypoints of an image count, at most K.

    Returns:
        A scalar, as :func:`keypoint_mse` returns it.

    Raises:
        InputError: as :func:`keypoint_mse`, and a `top_k` that is not within 1 and K.
    """
    check_integer("keypoint_ohkm", "top_k", top_k)
    error = _weighted_error("keypoint_ohkm", heatmaps, targets, weights)
    if top_k > error.shape[1]:
        raise InputError(f"keypoint_ohkm: top_k={top_k} of {error.shape[1]} keypoints; give at most as many.")
    of_keypoints = 0.5 * error.square().mean((2, 3))  # [N, K]
    return of_keypoints.topk(top_k, dim=1, sorted=False).values.mean()


def landmark_mse(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error over all pixels of all heatmaps.

    The loss of the authors' facial landmarks (``tools/train.py``: ``MSELoss(size_average=True)``): without the factor
    0.5 and without weights, so that the empty target of a landmark outside the image counts as well.

    Args:
        heatmaps: [N, K, h, w], floating.
        targets: [N, K, h, w], floating, on the device of `heatmaps`.

    Returns:
        A scalar in float32, in float64 for float64 heatmaps.

    Raises:
        InputError: tensors of other shapes, types or devices, or without elements.
    """
    return F.mse_loss(*_checked("landmark_mse", heatmaps, targets))


class KeypointMSELoss(nn.Module):
    """:func:`keypoint_mse` as a module: the loss of the authors' pose networks."""

    def forward(self, heatmaps: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return keypoint_mse(heatmaps, targets, weights)


class KeypointOHKMLoss(nn.Module):
    """:func:`keypoint_ohkm` as a module.

    Args:
        top_k: how many keypoints of an image count.

    Raises:
        InputError: `top_k` is no integer of at least 1.
    """

    def __init__(self, top_k: int = 8) -> None:
        super().__init__()
        check_integer("KeypointOHKMLoss", "top_k", top_k)
        self.top_k = top_k

    def forward(self, heatmaps: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return keypoint_ohkm(heatmaps, targets, weights, top_k=self.top_k)

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}"


class LandmarkMSELoss(nn.Module):
    """:func:`landmark_mse` as a module: the loss of the authors' facial landmark networks."""

    def forward(self, heatmaps: Tensor, targets: Tensor) -> Tensor:
        return landmark_mse(heatmaps, targets)


def _checked(what: str, heatmaps: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Return both in the dtype of the computation."""
    check_tensor(what, "heatmaps", heatmaps)
    check_tensor(what, "targets", targets)
    if heatmaps.dim() != 4 or not heatmaps.is_floating_point() or heatmaps.numel() == 0:
        raise InputError(
            f"{what}: heatmaps are {heatmaps.dtype} {list(heatmaps.shape)}; accepted are floating [N, K, h, w] with "
            "one element or more."
        )
    if (
        targets.shape != heatmaps.shape or not targets.is_floating_point() or targets.device != heatmaps.device
    ):  # torch.nn.MSELoss broadcasts other shapes
        raise InputError(
            f"{what}: targets are {targets.dtype} {list(targets.shape)} on {targets.device}; they must be floating "
            f"{list(heatmaps.shape)} on {heatmaps.device}, as the heatmaps are."
        )
    dtype = math_dtype(heatmaps.dtype)
    return heatmaps.to(dtype), targets.to(dtype)


def _weighted_error(what: str, given: Any, wanted: Any, weights: Any) -> Tensor:
    """Return weight * (heatmap - target), [N, K, h, w]."""
    heatmaps, targets = _checked(what, given, wanted)
    check_tensor(what, "weights", weights, optional=True)
    if weights is None:
        return heatmaps - targets
    accepted = (heatmaps.shape[:2], (*heatmaps.shape[:2], 1))
    if weights.shape not in accepted or weights.is_complex() or weights.device != heatmaps.device:
        raise InputError(
            f"{what}: weights are {weights.dtype} {list(weights.shape)} on {weights.device}; they must be real "
            f"{list(accepted[0])} or {list(accepted[1])} on {heatmaps.device}."
        )
    per_map: Tensor = weights.detach().to(heatmaps.dtype).reshape(*heatmaps.shape[:2], 1, 1)
    return (heatmaps - targets) * per_map
