"""The primitives of ``bn_act`` in Triton, computed in float32: see ``hrnet_fast/ops/bn_act_primitives.py``.

A reduction takes two launches: every program stores a partial result per channel, and a second kernel combines them in
a fixed order. The number of programs depends on the shape alone, so results are reproducible bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from hrnet_fast.kernels.triton.bn_act_kernels import (
    bn_act_kernel,
    bn_affine_kernel,
    bn_backward_input_kernel,
    bn_backward_sums_kernel,
    bn_moments_kernel,
    bn_statistics_kernel,
)
from hrnet_fast.kernels.triton.launch import ceiling, launch
from hrnet_fast.norm_affine import Norm, norms_of_maps

# Programs of a reduction over all blocks of channels: several for each multiprocessor of the largest devices.
PROGRAMS = 1024
# Tile of the kernels that combine partials: partials and channels.
COMBINE = {"BLOCK_R": 32, "BLOCK_C": 32}


def tile(channels: int, pixels: int, channels_last: bool) -> dict[str, Any]:
    """Return layout, and pixels and channels of a tile: powers of two, 1024 together, wide along contiguous memory."""
    if channels_last:
        block_c = min(64, max(16, triton.next_power_of_2(channels)))
        return {"CHANNELS_LAST": True, "BLOCK_P": 1024 // block_c, "BLOCK_C": block_c}
    block_p = min(256, max(16, triton.next_power_of_2(pixels)))
    return {"CHANNELS_LAST": False, "BLOCK_P": block_p, "BLOCK_C": 1024 // block_p}


class _Walk(NamedTuple):
    """How kernels walk maps of one shape and layout: their size arguments and grids."""

    format: torch.memory_format
    channels: int
    pixels: int
    blocks: dict[str, Any]
    columns: int
    tiles: int
    per_program: int
    rows: int


@functools.lru_cache(4096)
def _walk(shape: torch.Size, channels_last: bool) -> _Walk:
    batch, channels, height, width = shape
    # Images of one pixel have the same memory in both layouts; channels-last then uses all lanes.
    last = channels_last or height * width == 1
    images, pixels = (1, batch * height * width) if last else (batch, height * width)
    blocks = tile(channels, pixels, last)
    columns = ceiling(channels, blocks["BLOCK_C"])
    tiles = images * ceiling(pixels, blocks["BLOCK_P"])
    wanted = max(1, min(tiles, PROGRAMS // max(1, columns)))
    per_program = max(1, ceiling(tiles, wanted))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return _Walk(layout, channels, pixels, blocks, columns, tiles, per_program, max(1, ceiling(tiles, per_program)))


class _View:
    """A map's memory as kernels read it: dense tensors, the kernels' size arguments and their grids."""

    def __init__(self, x: Tensor) -> None:
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        walk = _walk(x.shape, last)
        self.format, self.channels, self.pixels, self.blocks, self.columns, self.tiles, self.per_program, self.rows = (
            walk
        )
        self.device = x.device

    def dense(self, t: Tensor) -> Tensor:
        return t.contiguous(memory_format=self.format)

    def like(self, t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=self.format)

    def table(self, *shape: int) -> Tensor:
        return torch.empty(*shape, self.channels, dtype=torch.float32, device=self.device)


def _partial_moments(view: _View, x: Tensor) -> Tensor:
    """Return count, mean and sum of squared deviations of every program [3, rows, C], and the origin of the means."""
    partials = view.table(3 * view.rows + 1)
    launch(
        bn_statistics_kernel, (view.rows, view.columns), view.device,
        view.dense(x), partials, view.channels, view.pixels, view.tiles, view.per_program, **view.blocks,
    )  # fmt: skip
    return partials


def statistics(x: Tensor) -> Tensor:
    view = _View(x)
    if x.numel() == 0:
        return view.table(2).fill_(torch.nan)
    result = view.table(2)
    launch(
        bn_moments_kernel, (ceiling(view.channels, COMBINE["BLOCK_C"]),), view.device,
        _partial_moments(view, x), result, view.rows, view.channels, **COMBINE,
    )  # fmt: skip
    return result


def batch_affine(xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
    """See the protocol; two launches per map."""
    results = []
    for x, own in zip(xs, norms_of_maps(xs, norms), strict=True):
        view = _View(x)
        count = view.pixels if view.blocks["CHANNELS_LAST"] else view.pixels * x.shape[0]
        unbiased = count / (count - 1) if count > 1 else float("nan")
        results.append(_affine_of(own, view.table(4), _partial_moments(view, x), view.rows, unbiased))
    return results


def running_affine(norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
    channels = sum(n.channels for n in norms)
    first = norms[0].running_mean
    assert first is not None
    result = torch.empty(4, channels, dtype=torch.float32, device=first.device)
    return _affine_of(norms, result, None, 0, 1.0)


def _affine_of(norms: Sequence[Norm], result: Tensor, partials: Tensor | None, rows: int, unbiased: float) -> Tensor:
    """Fill `result` from partial moments, or without them from the running statistics."""
    sizes = [n.channels for n in norms]
    copies: list[tuple[Tensor, Tensor]] = []

    def given(tensors: list[Tensor | None], written: bool = False) -> tuple[int, tuple[Tensor, ...]]:
        """Return a bit mask of the present tensors, and dense tensors, with `result` in place of an absent one."""
        dense = tuple(result if t is None else t.contiguous() for t in tensors)
        copies.extend((t, d) for t, d in zip(tensors, dense, strict=True) if written and t is not None and t is not d)
        return sum(1 << i for i, t in enumerate(tensors) if t is not None), dense

    batch = partials is not None
    has_weight, weights = given([n.weight for n in norms])
    has_bias, biases = given([n.bias for n in norms])
    has_mean, means = given([n.running_mean for n in norms], written=batch)
    has_variance, variances = given([n.running_var for n in norms], written=batch)
    launch(
        bn_affine_kernel, (ceiling(max(sizes), COMBINE["BLOCK_C"]), len(sizes)), result.device,
        result if partials is None else partials, result, rows, result.shape[1], unbiased,
        tuple(sum(sizes[:i]) for i in range(len(sizes))), tuple(sizes), weights, biases, means, variances,
        tuple(float(n.momentum) for n in norms), tuple(float(n.eps) for n in norms),
        NORMS=len(sizes), WEIGHT=has_weight, BIAS=has_bias, MEAN=has_mean, VARIANCE=has_variance, BATCH=batch,
        **COMBINE,
    )  # fmt: skip
    for target, source in copies:
        target.copy_(source)
    return result


def bn_act(
    x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
) -> Tensor:
    # Not `fuse_sum_kernel`: this one names its multiply-add, so that backward recomputes the very same sign.
    view = _View(x)
    out = view.like(x)
    if x.numel():
        x = view.dense(x)
        launch(
            bn_act_kernel, (view.tiles, view.columns), view.device,
            x, affine.contiguous(), x if residual is None else view.dense(residual),
            affine if residual_affine is None else residual_affine.contiguous(), out, view.channels, view.pixels,
            RESIDUAL=residual is not None, RESIDUAL_AFFINE=residual_affine is not None, RELU=relu, **view.blocks,
        )  # fmt: skip
    return out


def backward_sums(
    grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
) -> tuple[Tensor, Tensor | None]:
    view = _View(x)
    kept = view.like(grad) if keep else None
    partials = view.table(2, view.rows)
    grad, x = view.dense(grad), view.dense(x)
    # Without elements no program runs, and the one row is zeros.
    if x.numel() == 0:
        return partials.zero_().sum(1), kept
    launch(
        bn_backward_sums_kernel, (view.rows, view.columns), view.device,
        grad, grad if addend is None else view.dense(addend), x, affine.contiguous(),
        grad if out is None else view.dense(out), grad if kept is None else kept, partials, view.channels,
        view.pixels, view.tiles, view.per_program,
        ADDEND=addend is not None, OUT=out is not None, RELU=relu, KEEP=keep, **view.blocks,
    )  # fmt: skip
    return partials.sum(1), kept


def backward_input(grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
    view = _View(x)
    grad_x = view.like(x)
    if x.numel():
        launch(
            bn_backward_input_kernel, (view.tiles, view.columns), view.device,
            view.dense(grad), view.dense(x), affine.contiguous(), sums, grad_x, 1.0 / count, view.channels, view.pixels,
            BATCH=count != float("inf"), RELU=relu, **view.blocks,
        )  # fmt: skip
    return grad_x
