"""Bilinear sampling of packed pictures in integers, as OpenCV computes it on bytes.

Integers give the same bytes on every device. Sources: OpenCV 4 ``modules/imgproc/src/imgwarp.cpp`` (``warpAffine``,
``remap``) and ``resize.cpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.datasets.packed_images import PackedImages
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints.methods import check_size, widest_float

_STEPS = 32  # positions between two pixels that warpAffine distinguishes
_FINE = 1024  # precision in which it adds up rows and columns
_RESIZE = 2048  # precision of the weights of resize


def warp_images(images: PackedImages, matrices: Tensor, size: tuple[int, int], flips: Tensor | None = None) -> Tensor:
    """Return the crops that ``cv2.warpAffine`` with ``INTER_LINEAR`` makes; what is outside of a picture is 0.

    Args:
        images: N pictures of C channels.
        matrices: float [N, 2, 3] from picture pixels (x, y, 1) to output pixels, as of
            :func:`~hrnet_fast.keypoints.warp_matrices`, on the pictures' device.
        size: (h, w) of the crops.
        flips: bool [N]; True mirrors the picture before it is warped. The matrix then belongs to the mirrored picture.

    Returns:
        uint8 [N, C, h, w], channels last in memory. The bytes are those of OpenCV 4. OpenCV 5 computes positions
        without rounding them to 1/32 pixel.

    Raises:
        InputError: a shape is another one.
    """
    h, w = check_size("warp_images", "size", size)
    count = images.sizes.shape[0]
    if matrices.shape != (count, 2, 3):
        raise InputError(
            f"warp_images: matrices {list(matrices.shape)} given for {count} pictures; accepted are [N, 2, 3]."
        )
    x, y = _fixed_positions(_inverted(matrices.to(widest_float(matrices.device))), h, w)
    column, row = x >> 5, y >> 5
    right, down = x & (_STEPS - 1), y & (_STEPS - 1)
    heights, widths = (side.to(torch.int32)[:, None, None] for side in images.sizes.unbind(1))
    step: int | Tensor = 1
    if flips is not None:  # pixel x of the mirrored picture is W - 1 - x
        step = torch.where(flips, -1, 1).to(torch.int32)[:, None, None]
        column = torch.where(flips[:, None, None], widths - 1 - column, column)
    starts = images.starts.to(torch.int32)[:, None, None]
    total = torch.full((1,), _STEPS * _STEPS // 2, dtype=torch.int32, device=x.device)  # rounds
    inside_x = [(column >= 0) & (column < widths), (column + step >= 0) & (column + step < widths)]
    for below in (0, 1):
        inside_y = (row + below >= 0) & (row + below < heights)
        line = starts + (row + below) * widths + column
        share_y = down if below else _STEPS - down
        for beside in (0, 1):
            place = torch.where(inside_y & inside_x[beside], line + step if beside else line, 0)
            share = share_y * (right if beside else _STEPS - right)
            total = total + _rows(images.values, place).to(torch.int32) * share[..., None]
    return (total >> 10).to(torch.uint8).permute(0, 3, 1, 2)


def _rows(values: Tensor, place: Tensor) -> Tensor:
    """Return the rows of `values` [P, C] at `place` [...], as [..., C]."""
    return values.index_select(0, place.flatten()).view(*place.shape, values.shape[1])


def _inverted(matrices: Tensor) -> Tensor:
    """Return the inverse maps [N, 2, 3], in OpenCV's order of operations."""
    (a, b, c), (d, e, f) = (row.unbind(1) for row in matrices.unbind(1))
    share = 1 / (a * e - b * d)
    a, b, d, e = e * share, -b * share, -d * share, a * share
    return torch.stack([torch.stack([a, b, -a * c - b * f], 1), torch.stack([d, e, -d * c - e * f], 1)], 1)


def _fixed_positions(inverse: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return the positions (x, y) in the picture of each output pixel: int32 [N, h, w] in 1/32 pixel."""
    rows = torch.arange(h, device=inverse.device, dtype=inverse.dtype)
    columns = torch.arange(w, device=inverse.device, dtype=inverse.dtype)

    def along(part: Tensor) -> Tensor:
        across = torch.round(part[:, :1] * columns * _FINE).to(torch.int32)
        down = torch.round((part[:, 1:2] * rows + part[:, 2:]) * _FINE).to(torch.int32) + _FINE // _STEPS // 2
        return (down[:, :, None] + across[:, None, :]) >> 5

    return along(inverse[:, 0]), along(inverse[:, 1])


def resized_parts(
    images: PackedImages,
    scaled: Tensor,
    corners: Tensor,
    size: tuple[int, int],
    flips: Tensor | None = None,
    *,
    nearest: bool = False,
) -> Tensor:
    """Return a part of each picture after ``cv2.resize``, without computing the rest of the resized picture.

    Args:
        images: N pictures of C channels.
        scaled: int64 [N, 2], (height, width) to which each picture is resized.
        corners: int64 [N, 2], (row, column) of the part's first pixel in the resized picture.
        size: (h, w) of the part. What lies outside of the resized picture has the value of row 0 of
            ``images.values``.
        flips: bool [N]; True mirrors the picture before it is resized.
        nearest: ``INTER_NEAREST`` instead of ``INTER_LINEAR``.

    Returns:
        uint8 [N, C, h, w], channels last in memory; within one grey level of OpenCV's, and equal to it for `nearest`.

    Raises:
        InputError: `size` is not two positive integers.
    """
    h, w = check_size("resized_parts", "size", size)
    (rows, down, inside_y), (columns, right, inside_x) = (
        _axis_positions(images.sizes[:, i], scaled[:, i], corners[:, i], length, nearest)
        for i, length in enumerate((h, w))
    )
    widths = images.sizes[:, 1, None]
    if flips is not None:
        columns = [torch.where(flips[:, None], widths - 1 - column, column) for column in columns]
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    lines = [images.starts[:, None] + row * widths for row in rows]

    def taken(line: Tensor, column: Tensor) -> Tensor:
        place = line[:, :, None] + column[:, None, :]
        return _rows(images.values, torch.where(inside, place, 0)).to(torch.int32)

    if nearest:
        return taken(lines[0], columns[0]).to(torch.uint8).permute(0, 3, 1, 2)
    to_right, to_below = right[:, None, :, None], down[:, :, None, None]

    def across(line: Tensor) -> Tensor:
        return (taken(line, columns[0]) * (_RESIZE - to_right) + taken(line, columns[1]) * to_right) >> 4

    upper, lower = across(lines[0]) * (_RESIZE - to_below), across(lines[1]) * to_below
    blended = ((upper >> 16) + (lower >> 16) + 2) >> 2
    return blended.to(torch.uint8).permute(0, 3, 1, 2)


def _axis_positions(
    sizes: Tensor, scaled: Tensor, corners: Tensor, length: int, nearest: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return for one axis [N, length]: the two pixels, the second one's share in 1/2048, and what is inside."""
    place = corners[:, None] + torch.arange(length, device=corners.device)
    exact = widest_float(corners.device)
    step = (1 / (scaled.to(exact) / sizes.to(exact)))[:, None]
    last = sizes[:, None] - 1
    inside = (place >= 0) & (place < scaled[:, None])
    if nearest:
        first = torch.minimum(torch.floor(place.to(exact) * step).to(torch.int64).clamp(min=0), last)
        return [first, first], torch.zeros_like(place), inside
    position = ((place.to(exact) + 0.5) * step - 0.5).float()
    whole = torch.floor(position)
    share = torch.round((position - whole) * _RESIZE).to(torch.int32)
    first = whole.to(torch.int64)
    share = torch.where((first < 0) | (first >= last), 0, share)
    first = torch.minimum(first.clamp(min=0), last)
    return [first, torch.minimum(first + 1, last)], share, inside
