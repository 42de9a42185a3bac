"""Bilinear sampling of packed pictures in integers, as OpenCV computes it on bytes.

Positions are rounded to 1/32 pixel; what follows has no rounding that a device could choose. Sources: OpenCV 4
``modules/imgproc/src/imgwarp.cpp`` (``warpAffine``, ``remap``) and ``resize.cpp``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.datasets.packed_images import PackedImages, SeparateImages, channels_of, pack_images, separated
from hrnet_fast.errors import InputError
from hrnet_fast.host_operators import may_call
from hrnet_fast.keypoints.methods import check_size, widest_float

_STEPS = 32  # positions between two pixels that warpAffine distinguishes
_FINE = 1024  # precision in which it adds up rows and columns
_RESIZE = 2048  # precision of the weights of resize


def compiled_crops() -> bool:
    """Whether the compiled extension has the operators that crop on a CPU."""
    return may_call("warp_pictures_cpu")


def warp_images(
    images: PackedImages | SeparateImages, matrices: Tensor, size: tuple[int, int], flips: Tensor | None = None
) -> Tensor:
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
    count, device = images.sizes.shape[0], images.sizes.device
    if matrices.shape != (count, 2, 3):
        raise InputError(f"warp_images: matrices {list(matrices.shape)} for {count} pictures; accepted are [N, 2, 3].")
    across, down = _fixed_positions(_inverted(matrices.to(widest_float(device))), h, w)
    flips = torch.zeros(count, dtype=torch.bool, device=device) if flips is None else flips
    if device.type == "cpu" and compiled_crops():
        pictures = list(separated(images).pictures)
        crops: Tensor = torch.ops.hrnet_fast.warp_pictures_cpu(pictures, across, down, flips.contiguous())
        return crops
    packed = images if isinstance(images, PackedImages) else pack_images(images.pictures)
    given = (packed.starts, packed.sizes, across, down, flips)
    if device.type != "cpu":
        return _warped(packed.values, *given)
    crops = torch.empty(count, 3, h, w, dtype=torch.uint8)  # one by one, so that the passes stay in cache
    for i in range(count):
        crops[i : i + 1] = _warped(packed.values, *(part[i : i + 1] for part in given))
    return crops


def _warped(values: Tensor, starts: Tensor, sizes: Tensor, across: Tensor, down: Tensor, flips: Tensor) -> Tensor:
    x, y = ((down[..., None] + across[:, :, None, :]) >> 5).unbind(1)
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
    """Return the parts that columns [N, 2, w] and rows [N, 2, h] have of the positions (x, y), int32 in 1/1024 pixel.

    Their sums are rounded to 1/32 pixel by a shift.
    """
    rows = torch.arange(h, device=inverse.device, dtype=inverse.dtype)
    columns = torch.arange(w, device=inverse.device, dtype=inverse.dtype)
    across = torch.round(inverse[:, :, :1] * columns * _FINE).to(torch.int32)
    down = torch.round((inverse[:, :, 1:2] * rows + inverse[:, :, 2:]) * _FINE).to(torch.int32)
    return across, down + _FINE // _STEPS // 2


def resized_parts(
    images: PackedImages | SeparateImages,
    scaled: Tensor,
    corners: Tensor,
    size: tuple[int, int],
    flips: Tensor | None = None,
    *,
    nearest: bool = False,
    mirrored: Tensor | None = None,
) -> Tensor:
    """Return a part of each picture after ``cv2.resize``, without computing the rest of the resized picture.

    Args:
        images: N pictures or maps of classes.
        scaled: int64 [N, 2], (height, width) to which each picture is resized.
        corners: int64 [N, 2], (row, column) of the part's first pixel in the resized picture.
        size: (h, w) of the part. What lies outside of the resized picture has the first of ``images.values``.
        flips: bool [N]; True mirrors the picture before it is resized.
        nearest: ``INTER_NEAREST`` instead of ``INTER_LINEAR``.
        mirrored: bool [N]; True mirrors the part.

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
    if mirrored is not None:
        right, inside_x, *columns = (
            torch.where(mirrored[:, None], part.flip(1), part) for part in (right, inside_x, *columns)
        )
    if images.sizes.device.type == "cpu" and compiled_crops():
        found = separated(images)
        if found.pictures and found.pictures[0].dim() == (2 if nearest else 3):
            tables = (
                torch.stack([part.to(torch.int32) for part in axis], 1)
                for axis in ((*rows, down, inside_y), (*columns, right, inside_x))
            )
            return _resized_by_extension(found, *tables)
    packed = images if isinstance(images, PackedImages) else pack_images(images.pictures, images.outside)
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    lines = [packed.starts[:, None] + row * widths for row in rows]

    def taken(line: Tensor, column: Tensor) -> Tensor:
        place = torch.where(inside, line[:, :, None] + column[:, None, :], 0)
        return channels_of(_taken(packed.values, place))

    if nearest:
        return taken(lines[0], columns[0]).to(torch.uint8)
    to_right, to_below = right[:, None, None, :], down[:, None, :, None]

    def across(line: Tensor) -> Tensor:
        return (taken(line, columns[0]) * (_RESIZE - to_right) + taken(line, columns[1]) * to_right) >> 4

    upper, lower = across(lines[0]) * (_RESIZE - to_below), across(lines[1]) * to_below
    return (((upper >> 16) + (lower >> 16) + 2) >> 2).to(torch.uint8)


def _resized_by_extension(images: SeparateImages, rows: Tensor, columns: Tensor) -> Tensor:
    """Return parts by tables [N, 4, h] and [N, 4, w]: the two pixels, the second one's share, what is inside."""
    pictures, operators = list(images.pictures), torch.ops.hrnet_fast
    made: Tensor
    if pictures[0].dim() == 2:
        made = operators.pick_classes_cpu(pictures, rows, columns, images.outside)
    else:
        made = operators.resize_pictures_cpu(pictures, rows, columns)
    return made


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
