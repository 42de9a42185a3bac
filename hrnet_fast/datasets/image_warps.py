"""Bilinear sampling of packed pictures in integers, as OpenCV computes it on bytes.

Positions are rounded to 1/32 pixel; what follows has no rounding that a device could choose. Sources: OpenCV 4
``modules/imgproc/src/imgwarp.cpp`` (``warpAffine``, ``remap``) and ``resize.cpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.datasets.packed_images import PackedImages, channels_of
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints.methods import check_size, widest_float

_STEPS = 32  # positions between two pixels that warpAffine distinguishes
_FINE = 1024  # precision in which it adds up rows and columns
_RESIZE = 2048  # precision of the weights of resize


def warp_images(images: PackedImages, matrices: Tensor, size: tuple[int, int], flips: Tensor | None = None) -> Tensor:
    """Return the crops that ``cv2.warpAffine`` with ``INTER_LINEAR`` makes; what is outside of a picture is 0.

    Args:
        images: N pictures.
        matrices: float [N, 2, 3] from picture pixels (x, y, 1) to output pixels, as of
            :func:`~hrnet_fast.keypoints.warp_matrices`, on the pictures' device.
        size: (h, w) of the crops.
        flips: bool [N]; True mirrors the picture before it is warped. The matrix then belongs to the mirrored picture.

    Returns:
        uint8 [N, 3, h, w]. The bytes are those of OpenCV 4. OpenCV 5 computes positions without rounding them to 1/32
        pixel.

    Raises:
        InputError: a shape is another one.
    """
    h, w = check_size("warp_images", "size", size)
    count = images.sizes.shape[0]
    if matrices.shape != (count, 2, 3):
        raise InputError(f"warp_images: matrices {list(matrices.shape)} for {count} pictures; accepted are [N, 2, 3].")
    inverse = _inverted(matrices.to(widest_float(matrices.device)))
    flips = torch.zeros_like(images.starts, dtype=torch.bool) if flips is None else flips
    if images.values.device.type != "cpu":
        return _warped(images.values, images.starts, images.sizes, inverse, flips, h, w)
    crops = torch.empty(count, 3, h, w, dtype=torch.uint8)  # one by one, so that the passes stay in cache
    for i in range(count):
        one = slice(i, i + 1)
        crops[one] = _warped(images.values, images.starts[one], images.sizes[one], inverse[one], flips[one], h, w)
    return crops


def _warped(values: Tensor, starts: Tensor, sizes: Tensor, inverse: Tensor, flips: Tensor, h: int, w: int) -> Tensor:
    x, y = _fixed_positions(inverse, h, w)
    column, row = x >> 5, y >> 5
    right, down = (part.unsqueeze(1) for part in (x & (_STEPS - 1), y & (_STEPS - 1)))
    heights, widths = (side.to(torch.int32)[:, None, None] for side in sizes.unbind(1))
    mirrored = flips[:, None, None]
    columns = [column, column + 1]
    inside_x = [(c >= 0) & (c < widths) for c in columns]
    columns = [torch.where(mirrored, widths - 1 - c, c) for c in columns]  # W - 1 - x of the mirrored picture
    lines = []
    for line in (row, row + 1):
        inside_y, start = (line >= 0) & (line < heights), line * widths + starts.to(torch.int32)[:, None, None]
        first, second = (
            channels_of(_taken(values, torch.where(inside_y & inside_x[i], start + columns[i], 0))) for i in (0, 1)
        )
        lines.append(first * (_STEPS - right) + second * right)
    total = lines[0] * (_STEPS - down) + lines[1] * down
    return ((total + _STEPS * _STEPS // 2) >> 10).to(torch.uint8)


def _taken(values: Tensor, place: Tensor) -> Tensor:
    """Return `values` [P] at `place` [...]."""
    return values.index_select(0, place.flatten()).view(place.shape)


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
        images: N pictures or maps of classes.
        scaled: int64 [N, 2], (height, width) to which each picture is resized.
        corners: int64 [N, 2], (row, column) of the part's first pixel in the resized picture.
        size: (h, w) of the part. What lies outside of the resized picture has the first of ``images.values``.
        flips: bool [N]; True mirrors the picture before it is resized.
        nearest: ``INTER_NEAREST`` instead of ``INTER_LINEAR``.

    Returns:
        uint8 [N, 3, h, w], or [N, 1, h, w] of classes; within one grey level of OpenCV's, equal to it for `nearest`.

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
        place = torch.where(inside, line[:, :, None] + column[:, None, :], 0)
        return channels_of(_taken(images.values, place))

    if nearest:
        return taken(lines[0], columns[0]).to(torch.uint8)
    to_right, to_below = right[:, None, None, :], down[:, None, :, None]

    def across(line: Tensor) -> Tensor:
        return (taken(line, columns[0]) * (_RESIZE - to_right) + taken(line, columns[1]) * to_right) >> 4

    upper, lower = across(lines[0]) * (_RESIZE - to_below), across(lines[1]) * to_below
    return (((upper >> 16) + (lower >> 16) + 2) >> 2).to(torch.uint8)


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
