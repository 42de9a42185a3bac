"""``encode_keypoints``: points in the network's input to heatmap targets, bit for bit as the upstreams' code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.errors import InputError, shown
from hrnet_fast.host_operators import may_call
from hrnet_fast.keypoints.methods import as_float32, check_method, check_size, widest_float

_CHUNK = 1 << 14  # values per chunk on a CPU, so that the thirty passes of _exp_float32 stay in cache


def encode_keypoints(
    points: Tensor,
    visible: Tensor | None,
    input_size: Sequence[int],
    heatmap_size: Sequence[int],
    method: str = "msra",
    sigma: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Return the target heatmaps for `points`, and the weights of their losses.

    On x86 processors they equal bit for bit those of the authors' pose (``msra``: ``JointsDataset.generate_target``)
    and face code (``face``: ``lib/utils/transforms.py::generate_target``) and of mmpose's MSRAHeatmap (``msra``;
    ``dark`` with ``unbiased=True``) and UDPHeatmap (``udp``), with their patch of three standard deviations. The
    computation runs on the points' device, without a loop over points and without synchronisation.

    Args:
        points: real [N, K, 2] as (x, y) in input pixels. For ``udp`` these are pixel indices.
        visible: real or boolean [N, K]; None means all visible. Points below one half get an empty heatmap.
        input_size: (H, W) of the network's input.
        heatmap_size: (h, w).
        method: ``"msra"``, ``"dark"``, ``"udp"`` or ``"face"``; see :mod:`hrnet_fast.keypoints.methods`.
        sigma: standard deviation in heatmap pixels: 2 for pose at 256x192, 3 at 384x288; for faces, 1.5 (WFLW, COFW,
            AFLW) or 1 (300W).

    Returns:
        Float32 targets [N, K, h, w] and weights [N, K]: `visible`, and 0 if the patch is outside the heatmap or a
        coordinate is not finite. (The authors' face loss has no weights and includes empty heatmaps.)

    Raises:
        InputError: `points` or `visible` have another shape or type, a size or `sigma` is invalid, or the method is
            unknown.
    """
    what = "encode_keypoints"
    check_method(what, method)
    height, width = check_size(what, "input_size", input_size)
    h, w = check_size(what, "heatmap_size", heatmap_size, least=2 if method == "udp" else 1)
    if not (isinstance(sigma, (int, float)) and 1e-2 <= sigma <= 1e3):
        raise InputError(f"{what}: sigma={shown(sigma)} must be a number of heatmap pixels, from 0.01 to 1000.")
    seen = _check_points(points, visible)
    x, y = (
        _Axis(_to_heatmap_pixels(points[..., i], whole, size, method), size, method, float(sigma))
        for i, (whole, size) in enumerate(((width, w), (height, h)))
    )
    inside = x.inside & y.inside
    # The code bases differ in whether exactly one half is visible.
    drawn = inside & ((seen > 0.5) if method in ("msra", "face") else (seen >= 0.5))
    if method in ("msra", "face"):
        return _msra_heatmaps(x, y, float(sigma), drawn), seen * inside
    maps = {"dark": _dark_heatmaps, "udp": _udp_heatmaps}[method](x, y, float(sigma))
    return torch.where(drawn[..., None, None], maps, 0.0), seen * inside


def _to_heatmap_pixels(points: Tensor, whole: int, size: int, method: str) -> Tensor:
    """Return one coordinate [N, K] in heatmap pixels. mmpose rounds it and its scale factor to float32."""
    exact = points.detach().to(widest_float(points.device))
    if method == "udp":
        return _round_to_float32(_round_to_float32(exact) / as_float32((whole - 1) / (size - 1)))
    if method == "dark":
        return _round_to_float32(_round_to_float32(exact) / as_float32(whole / size))
    return exact / (whole / size)


def _round_to_float32(x: Tensor) -> Tensor:
    """Return `x` rounded to float32, in its own dtype."""
    return x.float().to(x.dtype)


def _check_points(points: Tensor, visible: Tensor | None) -> Tensor:
    if not isinstance(points, Tensor) or points.dim() != 3 or points.shape[2] != 2 or points.is_complex():
        given = f"{points.dtype} {list(points.shape)}" if isinstance(points, Tensor) else type(points).__name__
        raise InputError(f"encode_keypoints: points {given} given; accepted are [N, K, 2] as (x, y) in input pixels.")
    if visible is None:
        return torch.ones(points.shape[:2], device=points.device)
    if not isinstance(visible, Tensor) or visible.shape != points.shape[:2] or visible.is_complex():
        given = f"{visible.dtype} {list(visible.shape)}" if isinstance(visible, Tensor) else type(visible).__name__
        raise InputError(
            f"encode_keypoints: visible {given} given for points {list(points.shape)}; accepted is a tensor "
            f"{list(points.shape[:2])} or None."
        )
    if visible.device != points.device:
        raise InputError(
            f"encode_keypoints: visible on {visible.device} and points on {points.device}; move one to the other's."
        )
    return visible.detach().float()


class _Axis:
    """The patches of all points along one axis: their bounds, and the heatmap pixels that they cover."""

    def __init__(self, position: Tensor, size: int, method: str, sigma: float) -> None:
        reach = 3 * sigma
        self.position, self.pixels = position, torch.arange(size, device=position.device, dtype=position.dtype)
        if method == "dark":  # the patch is the whole heatmap
            self.inside = (position - reach < size) & (position + reach + 1 >= 0)
            return
        nearest = position if method == "face" else position + 0.5
        self.pixel = torch.trunc(_round_to_float32(nearest) if method == "udp" else nearest)
        # The upstreams truncate towards zero, so a patch that begins before the heatmap is one pixel further right if
        # sigma is not integral.
        first, last = torch.trunc(self.pixel - reach), torch.trunc(self.pixel + reach + 1)
        self.inside = (first < size) & (last >= 0)
        self.column = self.pixels - first[..., None]  # of the patch
        self.covered = (self.column >= 0) & (self.column < _patch_size(sigma)) & (self.pixels < last[..., None])


def _patch_size(sigma: float) -> int:
    """Return the number of columns of the upstreams' patch of three standard deviations."""
    return math.ceil(6 * sigma + 1)


def _patch_centre(sigma: float) -> float:
    """Return the column in which the patch is 1."""
    return (6 * sigma + 1) // 2


def _udp_heatmaps(x: _Axis, y: _Axis, sigma: float) -> Tensor:
    """Return heatmaps [N, K, h, w] of UDP: patches around the nearest pixel, with the maximum at the point itself."""

    def curve(axis: _Axis) -> Tensor:
        summit = _patch_centre(sigma) + axis.position - axis.pixel
        return torch.where(axis.covered, torch.exp(-((axis.column - summit[..., None]) ** 2) / (2 * sigma**2)), 0.0)

    return (curve(y)[..., :, None] * curve(x)[..., None, :]).float()


def _dark_heatmaps(x: _Axis, y: _Axis, sigma: float) -> Tensor:
    """Return heatmaps [N, K, h, w] of DARK: Gaussians around the points, computed in float32."""
    dx, dy = (_round_to_float32(_round_to_float32(axis.pixels - axis.position[..., None]) ** 2) for axis in (x, y))
    return _exp_float32(-_round_to_float32(dx[..., None, :] + dy[..., :, None]) / as_float32(2 * sigma**2))


def _msra_heatmaps(x: _Axis, y: _Axis, sigma: float, drawn: Tensor) -> Tensor:
    """Return heatmaps [N, K, h, w] of MSRA and face: one table of patch values, placed at the nearest pixels.

    Where `drawn` [N, K] is false they are 0.
    """
    place = torch.arange(_patch_size(sigma), device=x.column.device, dtype=x.column.dtype)
    squares = (place - _patch_centre(sigma)) ** 2
    table = _exp_float32(-(squares[:, None] + squares) / as_float32(2 * sigma**2)).to(x.column.dtype)
    drawn = drawn[..., None]
    if table.device.type == "cpu" and may_call("place_patches_cpu"):
        places = (torch.where(axis.covered & drawn, axis.column, -1).to(torch.int32) for axis in (y, x))
        maps: Tensor = torch.ops.hrnet_fast.place_patches_cpu(table.float(), *places)
        return maps
    # Products with matrices of ones and zeros select rows and columns exactly in float64.
    rows, columns = (
        ((axis.column[..., None] == place) & (axis.covered & drawn)[..., None]).to(table) for axis in (y, x)
    )
    return (rows @ table @ columns.mT).float()


def _exp_float32(z: Tensor) -> Tensor:
    """Return exp(z) in float32 as NumPy computes it, since the upstreams make their targets with NumPy.

    NumPy's float32 exponential (``loops_exponent_log``, AVX2 and AVX512) is not correctly rounded:
    it is 2^q times a quotient of polynomials in ``z - q ln 2``, in fused multiply-adds. Here these are computed in
    float64 and rounded, so that every device gives the same bits.
    """
    if z.dtype != torch.float64:
        return torch.exp(z).float()
    if z.device.type == "cpu" and z.numel() > _CHUNK:
        return torch.cat([_exp_float32(part) for part in torch.split(z.flatten(), _CHUNK)]).view(z.shape)

    def fused(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
        return (a * b + c).float().double()

    z = z.float().double()
    q = torch.round((z * as_float32(math.log2(math.e))).float().double())
    r = fused(q, as_float32(-6.93145752e-1), z)
    r = fused(q, as_float32(-1.42860677e-6), r)
    above = torch.full_like(r, as_float32(5.082762527590693718096e-04))
    for coefficient in (
        6.757896990527504603057e-03,
        5.114512081637298353406e-02,
        2.473615434895520810817e-01,
        7.257664613233124478488e-01,
        9.999999999980870924916e-01,
    ):
        above = fused(above, r, as_float32(coefficient))
    below = torch.full_like(r, as_float32(2.159509375685829852307e-02))
    for coefficient in (-2.742335390411667452936e-01, 1.0):
        below = fused(below, r, as_float32(coefficient))
    return ((above / below).float().double() * torch.exp2(q)).float()
