"""Affine maps between image and network input, for boxes, points and the crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_number, check_numbers, check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints.methods import check_method, check_size

Box = tuple[float, float, float, float]  # left, top, width, height in pixels


def fit_box(box: Box, size: Sequence[int], padding: float = 1.25) -> Box:
    """Return `box` extended about its centre to the aspect ratio of `size` (H, W), then scaled by `padding`.

    Paper, section 4, "Training": the detection box is extended to a fixed aspect ratio before cropping. The authors'
    pose and face repositories and mmpose then scale it by 1.25.

    Args:
        box: (left, top, width, height) in image pixels.
        size: (H, W) of the network input.
        padding: factor on width and height, positive.

    Raises:
        InputError: a side of the box, the size or the padding is not positive.
    """
    check_number("fit_box", "padding", padding)
    if padding <= 0:
        raise InputError(f"fit_box: padding={padding} must be positive.")
    fitted = fit_boxes(torch.tensor([_check_box(box)], dtype=torch.float64), size, padding)
    left, top, width, height = fitted[0].tolist()
    return (left, top, width, height)


def fit_boxes(boxes: Tensor, size: Sequence[int], padding: float = 1.25) -> Tensor:
    """Return boxes [N, 4] extended as by :func:`fit_box`, in their dtype, without synchronisation."""
    rows, columns = check_size("fit_box", "size", size)
    aspect = columns / rows
    corner, sides = boxes[:, :2], boxes[:, 2:]
    width, height = sides.unbind(1)
    fitted = torch.stack([torch.maximum(width, height * aspect), torch.maximum(height, width / aspect)], dim=1)
    fitted = fitted * padding
    return torch.cat([corner + sides / 2 - fitted / 2, fitted], dim=1)


def _check_box(box: Box) -> Box:
    """Return a box (left, top, width, height) of positive area.

    Raises:
        InputError: `box` is no such box.
    """
    sides = check_numbers("box", "sides", box)
    if len(sides) != 4 or sides[2] <= 0 or sides[3] <= 0:
        raise InputError(f"box {shown(box)}: width and height must be positive (left, top, width, height in pixels).")
    return sides


def to_image(points: Tensor, boxes: Tensor, input_size: Sequence[int]) -> Tensor:
    """Map decoded points from network inputs to the images that these were cropped from.

    A box is W input pixels wide. The result is that of the authors' ``transform_preds`` without its rounding to whole
    pixels, and of mmpose's ``TopdownPoseEstimator.add_pred_to_datasample``. (The authors' face evaluation then takes
    ``trunc(point) + 1``.)

    Args:
        points: [N, K, 2] as (x, y) in input pixels, from :func:`~hrnet_fast.keypoints.decode_keypoints` with any
            method.
        boxes: [N, 4] as (left, top, width, height) in image pixels, of the input's aspect ratio (:func:`fit_box`). The
            authors' centre is the box's centre, and its size is 200 times their scale.
        input_size: (H, W) of the network input.

    Returns:
        [N, K, 2] in image pixels, in the dtype of `points`; float32 for integers and half precision.

    Raises:
        InputError: a shape or type is unsupported.
    """
    height, width = check_size("to_image", "input_size", input_size)
    points, corner, size = _box_corners("to_image", points, boxes)
    return torch.stack([points[..., 0] / width, points[..., 1] / height], dim=-1) * size + corner


def to_input(points: Tensor, boxes: Tensor, input_size: Sequence[int], method: str = "msra") -> Tensor:
    """Map points from images to network inputs, for :func:`~hrnet_fast.keypoints.encode_keypoints`.

    Args:
        points: [N, K, 2] as (x, y) in image pixels.
        boxes: as in :func:`to_image`.
        input_size: (H, W) of the network input.
        method: ``"udp"`` maps a box's width to W - 1 pixels, the others to W.

    Returns:
        [N, K, 2] in input pixels, in the dtype of `points`; float32 for integers and half precision.

    Raises:
        InputError: a shape, type or `method` is unsupported.
    """
    check_method("to_input", method)
    height, width = check_size("to_input", "input_size", input_size)
    points, corner, size = _box_corners("to_input", points, boxes)
    share, less = (points - corner) / size, int(method == "udp")
    return torch.stack([share[..., 0] * (width - less), share[..., 1] * (height - less)], dim=-1)


def warp_matrix(box: Box, input_size: Sequence[int], method: str = "msra", rotation: float = 0.0) -> Tensor:
    """Return the matrix [2, 3], float64, that maps image pixels (x, y, 1) to input pixels.

    It equals the authors' ``get_affine_transform`` and mmpose's ``get_udp_warp_matrix``, and suits ``cv2.warpAffine``:
    coordinates are in pixels, with 0 at the centre of the first.

    Args:
        box: (left, top, width, height) in image pixels, of the input's aspect ratio.
        input_size: (H, W).
        method: as in :func:`to_input`.
        rotation: degrees about the box's centre, in the direction of the respective code.

    Raises:
        InputError: the box has no area, or a size, `method` or `rotation` is unsupported.
    """
    check_number("warp_matrix", "rotation", rotation)
    one = torch.tensor([_check_box(box)], dtype=torch.float64)
    return warp_matrices(one, input_size, method, torch.tensor([rotation], dtype=torch.float64))[0]


def warp_matrices(
    boxes: Tensor, input_size: Sequence[int], method: str = "msra", rotations: Tensor | None = None
) -> Tensor:
    """Return the matrices [N, 2, 3] of :func:`warp_matrix`, in the boxes' dtype, without synchronisation.

    Args:
        boxes: floating-point [N, 4]; every side is positive.
        input_size: (H, W).
        method: as in :func:`to_input`.
        rotations: degrees [N]; None means 0.

    Raises:
        InputError: a size or `method` is unsupported.
    """
    check_method("warp_matrix", method)
    height, width = check_size("warp_matrix", "input_size", input_size)
    udp = method == "udp"
    centre, (box_width, box_height) = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:].unbind(1)
    x, y = centre.unbind(1)
    angle = torch.zeros_like(x) if rotations is None else rotations.to(boxes) * (math.pi / 180)
    angle = angle if udp else -angle
    cos, sin = torch.cos(angle), torch.sin(angle)
    kx, ky = (width - udp) / box_width, (height - udp) / box_height
    return torch.stack(
        [
            torch.stack([kx * cos, -kx * sin, kx * (sin * y - cos * x) + (width - udp) / 2], dim=1),
            torch.stack([ky * sin, ky * cos, -ky * (sin * x + cos * y) + (height - udp) / 2], dim=1),
        ],
        dim=1,
    )


def _box_corners(what: str, points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, box corners and box sizes in one dtype: that of the points, at least float32."""
    check_tensor(what, "points", points)
    check_tensor(what, "boxes", boxes)
    if points.dim() != 3 or points.shape[2] != 2 or boxes.shape != (points.shape[0], 4):
        raise InputError(
            f"{what}: points {list(points.shape)} and boxes {list(boxes.shape)} given; accepted are [N, K, 2] and "
            "[N, 4]."
        )
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    return points, boxes[:, None, :2].to(points), boxes[:, None, 2:].to(points)
