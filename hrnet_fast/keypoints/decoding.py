"""``decode_keypoints``: heatmaps to points in the network's input, by the methods of the upstreams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.keypoints.methods import check_method, check_size, widest_float

# DARK's blur in mmpose: 11 taps, with OpenCV's standard deviation for that width.
_TAPS = 11
_SIGMA = 0.3 * ((_TAPS - 1) * 0.5 - 1) + 0.8
_EPS = 2.0**-23  # float32's, which mmpose adds to UDP's Hessian


def decode_keypoints(heatmaps: Tensor, input_size: Sequence[int], method: str = "msra") -> tuple[Tensor, Tensor]:
    """Return position and value of each heatmap's peak.

    ``msra`` and ``face`` shift the first maximum by a quarter pixel towards its higher neighbours. ``dark`` and ``udp``
    take the maximum of a quadratic Taylor expansion of the blurred map's logarithm. A maximum near the border is not
    refined: ``msra`` and ``dark`` refine both coordinates or none (authors' ``lib/core/inference.py``; mmpose's
    MSRAHeatmap also refines along the border). A map without a positive value gives pixel (-1, -1), outside the
    heatmap, as in mmpose and the authors' face code; the authors' pose code gives (0, 0). A map whose maximum is NaN
    gives NaN.

    :func:`~hrnet_fast.keypoints.to_image` maps the points of every method to the image: a box is W input pixels wide.
    ``udp`` therefore multiplies by ``W / (w - 1)``, as mmpose's UDPHeatmap does. For pixel indices in a crop by UDP's
    matrix, whose last pixel is the end of the box, multiply its points by ``(W - 1) / W``.

    Args:
        heatmaps: floating [N, K, h, w] on any device; float16 and bfloat16 are read as float32.
        input_size: (H, W) of the network's input in pixels.
        method: ``"msra"``, ``"dark"``, ``"udp"`` or ``"face"``; see :mod:`hrnet_fast.keypoints.methods`.

    Returns:
        Points [N, K, 2] as (x, y) in input pixels and values [N, K], in float32, or in float64 for float64 heatmaps.
        Neither has a gradient.

    Raises:
        InputError: the heatmaps have another type or rank or no pixels, the size is invalid, or the method is unknown.
    """
    check_method("decode_keypoints", method)
    height, width = check_size("decode_keypoints", "input_size", input_size)
    maps = _check_heatmaps(heatmaps, least=2 if method == "udp" else 1)
    h, w = maps.shape[2:]
    values, index = maps.flatten(2).max(dim=2)  # the first of equal maxima; NaN counts as largest
    x, y = index % w, index // w
    if method in ("msra", "face"):
        dx, dy = _quarter_pixel_offset(maps, x, y, first=2 if method == "msra" else 1)
    else:
        dx, dy = _taylor_offset(maps, values, x, y, udp=method == "udp")
    half = 0.5 if method == "face" else 0.0
    less = 1 if method == "udp" else 0
    missing = values <= 0
    px = torch.where(missing, -1.0, x + dx) + half
    py = torch.where(missing, -1.0, y + dy) + half
    points = torch.stack([px * (width / (w - less)), py * (height / (h - less))], dim=2).to(maps.dtype)
    return torch.where(values.isnan()[..., None], math.nan, points), values


def _check_heatmaps(heatmaps: Tensor, least: int) -> Tensor:
    if not isinstance(heatmaps, Tensor) or not heatmaps.is_floating_point() or heatmaps.dim() != 4:
        given = f"{heatmaps.dtype} {list(heatmaps.shape)}" if isinstance(heatmaps, Tensor) else type(heatmaps).__name__
        raise InputError(f"decode_keypoints: {given} given; accepted are floating heatmaps [N, K, h, w].")
    if min(heatmaps.shape[2:]) < least:
        raise InputError(
            f"decode_keypoints: heatmaps {list(heatmaps.shape)} given; height and width must be at least {least}."
        )
    maps = heatmaps.detach()
    return maps if maps.dtype == torch.float64 else maps.float()


def _gather_pixels(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return values [N, K] of `maps` [N, K, h, w] at pixels [N, K]; coordinates are clamped to the map."""
    h, w = maps.shape[2:]
    index = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return maps.flatten(2).gather(2, index[..., None])[..., 0]


def _quarter_pixel_offset(maps: Tensor, x: Tensor, y: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return offsets of a quarter pixel towards the higher neighbours; `first` is the first row that is refined."""
    h, w = maps.shape[2:]
    inside = (x >= first) & (x < w - 1) & (y >= first) & (y < h - 1)
    step = inside * 0.25
    dx = torch.sign(_gather_pixels(maps, x + 1, y) - _gather_pixels(maps, x - 1, y))
    dy = torch.sign(_gather_pixels(maps, x, y + 1) - _gather_pixels(maps, x, y - 1))
    return dx * step, dy * step


def _taylor_offset(maps: Tensor, values: Tensor, x: Tensor, y: Tensor, *, udp: bool) -> tuple[Tensor, Tensor]:
    """Return offsets to the maximum of a Taylor expansion (mmpose ``refine_keypoints_dark`` and ``_dark_udp``)."""
    h, w = maps.shape[2:]
    blurred = _gaussian_blur(maps)
    factor = values / blurred.amax((2, 3))

    def at(dx: int, dy: int) -> Tensor:
        value = _gather_pixels(blurred, x + dx, y + dy) * factor
        return (value.clamp(1e-3, 50.0) if udp else value.clamp(min=1e-10)).log()

    here, right, left, below, above = at(0, 0), at(1, 0), at(-1, 0), at(0, 1), at(0, -1)
    gx, gy = 0.5 * (right - left), 0.5 * (below - above)
    if udp:
        xx = right - 2 * here + left + _EPS
        yy = below - 2 * here + above + _EPS
        xy = 0.5 * (at(1, 1) - right - below + 2 * here - left - above + at(-1, -1))
        # mmpose adds the epsilon to the diagonal and inverts; it raises for a singular matrix.
        wanted = torch.ones_like(x, dtype=torch.bool)
    else:
        xx = 0.25 * (at(2, 0) - 2 * here + at(-2, 0))
        yy = 0.25 * (at(0, 2) - 2 * here + at(0, -2))
        xy = 0.25 * (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1))
        wanted = (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
    determinant = xx * yy - xy * xy
    wanted &= determinant != 0
    dx = torch.where(wanted, (xy * gy - yy * gx) / determinant, 0.0)
    dy = torch.where(wanted, (xy * gx - xx * gy) / determinant, 0.0)
    return dx, dy


def _gaussian_blur(maps: Tensor) -> Tensor:
    """Blur with zero padding, as products with band matrices in float64, which TF32 settings do not affect."""
    wide = maps.to(widest_float(maps.device)).clamp(min=-1e30)  # 0 times -inf would be NaN
    down, along = (_blur_matrix(size, wide) for size in maps.shape[2:])
    return down @ wide @ along


def _blur_matrix(size: int, like: Tensor) -> Tensor:
    """Return the symmetric band matrix [size, size] of the blur along one side."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    apart = (place[:, None] - place).abs()
    total = sum(math.exp(-((i - _TAPS // 2) ** 2) / (2 * _SIGMA**2)) for i in range(_TAPS))
    return torch.where(apart <= _TAPS // 2, torch.exp(-(apart**2) / (2 * _SIGMA**2)) / total, 0.0)
