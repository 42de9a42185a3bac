"""Stands in for ``mmcv._ext``, the compiled operators that mmcv-lite lacks; mmdet and mmpose import it.

Non-maximum suppression and RoI alignment, which detectors call, are torchvision's, with the arguments of mmcv 2.1.0
(``mmcv/ops/nms.py`` and ``mmcv/ops/roi_align.py``).
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of kept boxes [K], by descending score.

    Args:
        boxes: [N, 4] as x1, y1, x2, y2.
        scores: [N].
        iou_threshold: a box that overlaps a kept one by more than this is dropped.
        offset: added to widths and heights; torchvision's boxes have 0.
    """
    from torchvision.ops import nms as keep

    if offset != 0:
        raise NotImplementedError(f"nms with offset={offset}; torchvision's has 0.")
    return keep(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the regions' maps [K, C, height, width] to `output`.

    Args:
        input: [N, C, H, W].
        rois: [K, 5] as number of the image, x1, y1, x2, y2.
        argmax_y, argmax_x: of the maximum, which is not used.
        pool_mode: 1, the mean of each cell's samples; 0 would be their maximum.
    """
    from torchvision.ops import roi_align

    if pool_mode != 1:
        raise NotImplementedError("roi_align by the maximum; torchvision's takes the mean.")
    size = (aligned_height, aligned_width)
    output.copy_(roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of the maps [N, C, H, W] to `grad_input`; arguments as in :func:`roi_align_forward`."""
    import torch
    import torchvision  # noqa: F401  # registers the operator

    size = (aligned_height, aligned_width)
    backward = torch.ops.torchvision._roi_align_backward
    grad_input.copy_(backward(grad_output, rois, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned))


class _Extension(ModuleType):
    """Has every operator by name; calling one that is not defined here raises."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*_args: Any, **_options: Any) -> NoReturn:
            raise NotImplementedError(f"mmcv._ext.{name} is a compiled operator of mmcv; mmcv-lite has none.")

        return operator


def install() -> None:
    """Make ``import mmcv.ops`` work; call it before the first import of mmpose, mmseg or mmdet."""
    if "mmcv._ext" not in sys.modules:
        extension = _Extension("mmcv._ext")
        extension.__spec__ = ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = extension
