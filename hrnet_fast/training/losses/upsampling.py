"""Bilinear upsampling of logits, whose backward gathers: CUDA's own adds atomically, and so in any order."""

from __future__ import annotations

from torch import Tensor

from hrnet_fast.checks import check_tensor
from hrnet_fast.errors import InputError
from hrnet_fast.norm_affine import math_dtype
from hrnet_fast.ops import fuse_sum


def upsample_logits(
    logits: Tensor, size: tuple[int, int], *, align_corners: bool = False, impl: str = "auto"
) -> Tensor:
    """Return logits, bilinearly interpolated to `size` as :func:`torch.nn.functional.interpolate` does.

    One term of :func:`hrnet_fast.ops.fuse_sum`. Its backward adds the gradients of every input in a fixed order, where
    PyTorch's own backward on CUDA adds them atomically and differs from run to run. Nothing of it is kept for backward.
    The exception is ``impl="reference"``, which is what float64 takes on CUDA without the compiled extension. On a CPU
    the forward is PyTorch's own, and the backward gathers with the compiled extension.

    Args:
        logits: [N, K, h, w], floating. Half types are interpolated in float32, so that nothing is rounded in between.
        size: (H, W) of the result, of any ratio to (h, w).
        align_corners: whether the outermost pixels' centres are mapped onto each other: True in the authors' OCR
            networks, False in their others.
        impl: of ``fuse_sum``.

    Returns:
        Contiguous [N, K, H, W] in float32, in float64 for float64 logits: the layout that softmax needs.

    Raises:
        InputError: no map, or no size.
        ImplementationError: a named implementation that cannot run here.
    """
    check_tensor("upsample_logits", "logits", logits)
    if logits.dim() != 4 or not logits.is_floating_point():
        raise InputError(
            f"upsample_logits: logits are {logits.dtype} {list(logits.shape)}; accepted are floating [N, K, h, w]."
        )
    # Copied at the low resolution: a softmax would copy a channels-last map at the high one.
    wide = logits.to(math_dtype(logits.dtype)).contiguous()
    return fuse_sum([wide], size=size, mode="bilinear", align_corners=align_corners, activation=None, impl=impl)
