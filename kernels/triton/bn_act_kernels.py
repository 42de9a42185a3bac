"""Triton kernels of ``bn_act``, launched by ``bn_act.py``.

A map is treated as [images, pixels, channels]: one image of N*H*W pixels in channels-last, N images of H*W pixels in
contiguous layout. A reduction stores one partial per program and channel; they are added in a fixed order, without
atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(t, channels, pixels, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """First element of tile t, offsets [P, C] from there, their mask, and that of the tile's pixels [P].

    A tile stays within one image. The first element's index is one 64-bit scalar, for more than 2^31 elements, so that
    the many offsets need 32 bits only, except between the planes of a contiguous map.
    """
    size = tl.cast(pixels, tl.int64)
    p = tl.arange(0, BLOCK_P)
    own = tl.program_id(1) * BLOCK_C
    c = tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        start = tl.cast(t, tl.int64) * BLOCK_P
        first = start * channels + own
        at = p[:, None] * channels + c[None, :]
    else:
        tiles = tl.cdiv(size, BLOCK_P).to(tl.int32)
        start = tl.cast(t % tiles, tl.int64) * BLOCK_P
        first = (tl.cast(t // tiles, tl.int64) * channels + own) * size + start
        at = (c.to(tl.int64) * size)[None, :] + p[:, None]
    valid = p < tl.minimum(size - start, BLOCK_P).to(tl.int32)
    inside = valid[:, None] & (c < channels - own)[None, :]
    return first, at, inside, valid


@triton.jit
def _row(table, k, channels, BLOCK_C: tl.constexpr):
    """Row k of a [rows, channels] float32 table, this program's channels of it, as [1, C]."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.load(table + k * channels + c, mask=c < channels, other=0.0)[None, :]


@triton.jit
def bn_statistics_kernel(
    x_in, partials, channels, pixels, total, per_program,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Count, mean and sum of squared deviations of this program's tiles, into row program_id(0) of [3, rows, C].

    Values are relative to the first value of their channel, stored in one more row, so that a large mean costs no
    precision. Each lane uses Welford's update, in case the first value is an outlier; lanes combine by Chan's formula.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = c.to(tl.int64)
    if not CHANNELS_LAST:
        start = start * pixels
    centre = tl.load(x_in + start, mask=c < channels, other=0.0).to(tl.float32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    begin = tl.program_id(0) * per_program
    for t in range(begin, tl.minimum(begin + per_program, total)):
        first, at, inside, valid = _tile(t, channels, pixels, CHANNELS_LAST, BLOCK_P, BLOCK_C)
        x = tl.load(x_in + first + at, mask=inside, other=0.0).to(tl.float32) - centre[None, :]
        count += valid.to(tl.float32)
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))[:, None]
        squares += delta * (x - mean)
    n = tl.sum(count, axis=0)
    average = tl.sum(count[:, None] * mean, axis=0) / n
    deviation = mean - average[None, :]
    squares = tl.sum(squares + count[:, None] * deviation * deviation, axis=0)
    rows = tl.num_programs(0).to(tl.int64)
    row = partials + tl.program_id(0).to(tl.int64) * channels + c
    tl.store(row, tl.zeros_like(average) + n, mask=c < channels)
    tl.store(row + rows * channels, average, mask=c < channels)
    tl.store(row + 2 * rows * channels, squares, mask=c < channels)
    tl.store(partials + 3 * rows * channels + c, centre, mask=(c < channels) & (tl.program_id(0) == 0))


@triton.jit
def _combined(partials, rows, channels, c, keep, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean, in two parts to be added, and biased variance [C] of channels c, from all partials by Chan's formula.

    Rows are added in order. The first part of the mean may be large and is exact; the second is small.
    """
    size = tl.cast(rows, tl.int64) * channels
    centre = tl.load(partials + 3 * size + c, mask=keep, other=0.0)
    count = tl.zeros((BLOCK_C,), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < rows)[:, None] & keep[None, :]
        at = r[:, None] * channels + c[None, :]
        n = tl.load(partials + at, mask=mask, other=0.0)
        mean = tl.load(partials + size + at, mask=mask, other=0.0)
        count += tl.sum(n, axis=0)
        total += tl.sum(n * mean, axis=0)
    count = tl.where(keep, count, 1.0)
    average = tl.div_rn(total, count)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < rows)[:, None] & keep[None, :]
        at = r[:, None] * channels + c[None, :]
        n = tl.load(partials + at, mask=mask, other=0.0)
        deviation = tl.load(partials + size + at, mask=mask, other=0.0) - average[None, :]
        own = tl.load(partials + 2 * size + at, mask=mask, other=0.0)
        squares += tl.sum(own + n * deviation * deviation, axis=0)
    return centre, average, tl.div_rn(squares, count)


@triton.jit
def bn_moments_kernel(partials, result, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Mean and biased variance, [2, C]."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    base, shift, variance = _combined(partials, rows, channels, c, c < channels, BLOCK_R, BLOCK_C)
    tl.store(result + c, base + shift, mask=c < channels)
    tl.store(result + channels + c, variance, mask=c < channels)


@triton.jit
def _lerp(at, value, weight, keep):
    old = tl.load(at, mask=keep, other=0.0).to(tl.float32)
    tl.store(at, (old + weight * (value - old)).to(at.dtype.element_ty), mask=keep)


@triton.jit
def bn_affine_kernel(
    partials, result, rows, channels, unbiased, starts, sizes, weights, biases, means, variances, momenta, epsilons,
    NORMS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, MEAN: tl.constexpr, VARIANCE: tl.constexpr,
    BATCH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, invstd, scale and shift [4, C] of stacked norms, from batch or running statistics.

    From batch statistics it also updates the running ones.
    ``WEIGHT``, ``BIAS``, ``MEAN`` and ``VARIANCE`` have a bit for every norm that has that tensor.
    """
    # One norm per program; the program index selects its tensors.
    k = tl.program_id(1)
    local = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    start, size, epsilon = k * 0, k * 0, k * 0.0
    for i in tl.static_range(NORMS):
        start = tl.where(k == i, starts[i], start)
        size = tl.where(k == i, sizes[i], size)
        epsilon = tl.where(k == i, epsilons[i], epsilon)
    keep = local < size
    base = tl.zeros((BLOCK_C,), tl.float32)
    small = tl.zeros((BLOCK_C,), tl.float32)
    variance = tl.zeros((BLOCK_C,), tl.float32)
    if BATCH:
        base, small, variance = _combined(partials, rows, channels, start + local, keep, BLOCK_R, BLOCK_C)
    weight = tl.zeros((BLOCK_C,), tl.float32) + 1.0
    bias = tl.zeros((BLOCK_C,), tl.float32)
    for i in tl.static_range(NORMS):
        mine = keep & (k == i)
        if (WEIGHT >> i) & 1:
            given = tl.load(weights[i] + local, mask=mine, other=0.0).to(tl.float32)
            weight = tl.where(mine, given, weight)
        if (BIAS >> i) & 1:
            bias += tl.load(biases[i] + local, mask=mine, other=0.0).to(tl.float32)
        if BATCH:
            if (MEAN >> i) & 1:
                _lerp(means[i] + local, base + small, momenta[i], mine)
            if (VARIANCE >> i) & 1:
                _lerp(variances[i] + local, variance * unbiased, momenta[i], mine)
        else:
            base += tl.load(means[i] + local, mask=mine, other=0.0).to(tl.float32)
            variance += tl.load(variances[i] + local, mask=mine, other=0.0).to(tl.float32)
    invstd = tl.div_rn(tl.zeros_like(base) + 1.0, tl.sqrt_rn(variance + epsilon))
    scale = invstd * weight
    at = result + start + local
    tl.store(at, base + small, mask=keep)
    tl.store(at + channels, invstd, mask=keep)
    tl.store(at + 2 * channels, scale, mask=keep)
    # Rounded once, from the unrounded mean: with a large mean, rounding it first would dominate the error.
    tl.store(at + 3 * channels, tl.fma(-base, scale, tl.fma(-small, scale, bias)), mask=keep)


@triton.jit
def _normalised(x, affine_in, channels, BLOCK_C: tl.constexpr):
    # An explicit fused multiply-add, so that backward recomputes the sign of forward under any compiler option.
    scale, shift = _row(affine_in, 2, channels, BLOCK_C), _row(affine_in, 3, channels, BLOCK_C)
    return tl.fma(x, tl.broadcast_to(scale, x.shape), tl.broadcast_to(shift, x.shape))


@triton.jit
def bn_act_kernel(
    x_in, affine_in, residual, residual_affine, out, channels, pixels,
    RESIDUAL: tl.constexpr, RESIDUAL_AFFINE: tl.constexpr, RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    first, at, inside, _ = _tile(tl.program_id(0), channels, pixels, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    x = tl.load(x_in + first + at, mask=inside, other=0.0).to(tl.float32)
    y = _normalised(x, affine_in, channels, BLOCK_C)
    if RESIDUAL:
        r = tl.load(residual + first + at, mask=inside, other=0.0).to(tl.float32)
        if RESIDUAL_AFFINE:
            r = _normalised(r, residual_affine, channels, BLOCK_C)
        y += r
    if RELU:
        y = tl.where(y < 0.0, 0.0, y)  # keeps NaN
    tl.store(out + first + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def bn_backward_sums_kernel(
    grad, addend, x_in, affine_in, out, kept, partials, channels, pixels, total, per_program,
    ADDEND: tl.constexpr, OUT: tl.constexpr, RELU: tl.constexpr, KEEP: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g * (x - mean) * invstd over this program's tiles, into its row of [2, rows, C]."""
    mean, invstd = _row(affine_in, 0, channels, BLOCK_C), _row(affine_in, 1, channels, BLOCK_C)
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    begin = tl.program_id(0) * per_program
    for t in range(begin, tl.minimum(begin + per_program, total)):
        first, at, inside, _ = _tile(t, channels, pixels, CHANNELS_LAST, BLOCK_P, BLOCK_C)
        g = tl.load(grad + first + at, mask=inside, other=0.0).to(tl.float32)
        if ADDEND:
            g += tl.load(addend + first + at, mask=inside, other=0.0).to(tl.float32)
            # Rounded as stored: these sums and the input's gradient must use the same numbers.
            g = g.to(grad.dtype.element_ty).to(tl.float32)
        x = tl.load(x_in + first + at, mask=inside, other=0.0).to(tl.float32)
        if OUT:
            g = tl.where(
                tl.load(out + first + at, mask=inside, other=0.0).to(tl.float32) <= 0.0, 0.0, g
            )  # a NaN lets the gradient through
        elif RELU:
            g = tl.where(_normalised(x, affine_in, channels, BLOCK_C) <= 0.0, 0.0, g)
        if KEEP:
            tl.store(kept + first + at, g.to(kept.dtype.element_ty), mask=inside)
        sums += g
        # Masked lanes have g = 0, but the statistics of their channel may be infinite.
        products += tl.where(inside, g * ((x - mean) * invstd), 0.0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = partials + tl.program_id(0).to(tl.int64) * channels + c
    tl.store(row, tl.sum(sums, axis=0), mask=c < channels)
    tl.store(row + tl.num_programs(0).to(tl.int64) * channels, tl.sum(products, axis=0), mask=c < channels)


@triton.jit
def bn_backward_input_kernel(
    grad, x_in, affine_in, sums, grad_x, share, channels, pixels,
    BATCH: tl.constexpr, RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    first, at, inside, _ = _tile(tl.program_id(0), channels, pixels, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    g = tl.load(grad + first + at, mask=inside, other=0.0).to(tl.float32)
    if BATCH or RELU:
        x = tl.load(x_in + first + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            g = tl.where(_normalised(x, affine_in, channels, BLOCK_C) <= 0.0, 0.0, g)
        if BATCH:
            mean, invstd = _row(affine_in, 0, channels, BLOCK_C), _row(affine_in, 1, channels, BLOCK_C)
            g -= _row(sums, 0, channels, BLOCK_C) * share
            g -= (x - mean) * (invstd * (_row(sums, 1, channels, BLOCK_C) * share))
    g *= _row(affine_in, 2, channels, BLOCK_C)
    tl.store(grad_x + first + at, g.to(grad_x.dtype.element_ty), mask=inside)
