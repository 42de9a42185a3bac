"""``strided_conv_chain`` in Triton: an implicit matrix product over the nine taps and the channels of all inputs.

A program computes a tile of output pixels and channels. Its loop runs over the inputs, so their concatenation is never
written. Bias, addend and ReLU are applied to the float32 sums before the only store. Inputs and addend are read by
their strides, so slices of channels need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hrnet_fast.implementations import interpreting
from hrnet_fast.kernels.triton.fuse_sum import _offsets, _own_tile
from hrnet_fast.kernels.triton.launch import launch
from hrnet_fast.kernels.triton.upsample_conv1x1_sum import _strided, vectors, wide


# Sizes of maps: what divides them says nothing about the alignment of what a channels-last program loads.
@triton.jit(do_not_specialize=["height_in", "width_in", "height", "width", "relu_begin", "relu_end"])
def strided_conv_chain_kernel(
    out, xs, weight, bias, addend, in_channels, strides_n, strides_c, strides_h, strides_w, all_channels,
    height_in, width_in, channels, height, width, addend_n, addend_c, addend_h, addend_w, relu_begin, relu_end,
    INPUTS: tl.constexpr, BIAS: tl.constexpr, ADDEND: tl.constexpr, RELU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, WIDEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    n, y, x, c, inside = _own_tile(channels, height, width, BLOCK_P, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    # Weights are [C_out, 3, 3, C_in], so that a block of input channels is contiguous.
    filters = c * 9 * all_channels
    if WIDE:
        filters = c.to(tl.int64) * 9 * all_channels
    before = 0  # channels of the previous inputs
    for k in tl.static_range(INPUTS):
        size = in_channels[k]
        image = xs[k] + n.to(tl.int64) * strides_n[k]
        blocks = tl.cdiv(size, BLOCK_I)
        # One loop over taps and channels, so that loads are pipelined across all iterations.
        for step in range(9 * blocks):
            tap = step // blocks
            i = step % blocks * BLOCK_I + tl.arange(0, BLOCK_I)
            rows, columns = 2 * y - 1 + tap // 3, 2 * x - 1 + tap % 3
            good = (rows >= 0) & (rows < height_in) & (columns >= 0) & (columns < width_in)
            at = _strided(rows, columns, i, strides_c[k], strides_h[k], strides_w[k], WIDE)
            pixels = tl.load(image + at, mask=good[:, None] & (i < size)[None, :], other=0.0)
            at = filters[None, :] + (tap * all_channels + before + i)[:, None]
            taps = tl.load(weight + at, mask=(i < size)[:, None] & (c < channels)[None, :], other=0.0)
            if WIDEN:  # the interpreter cannot multiply bfloat16
                pixels, taps = pixels.to(tl.float32), taps.to(tl.float32)
            total = tl.dot(pixels, taps, total, input_precision="ieee")
        before += size
    if BIAS:
        total += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    if ADDEND:
        at = n.to(tl.int64) * addend_n + _strided(y, x, c, addend_c, addend_h, addend_w, WIDE)
        total += tl.load(addend + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        chosen = (c >= relu_begin) & (c < relu_end)
        total = tl.where(chosen[None, :] & (total < 0.0), 0.0, total)  # keeps NaN
    at = _offsets(CHANNELS_LAST, n, y, x, c, channels, height, width)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


def tile(channels: int, itemsize: int, narrow: bool) -> tuple[int, int, int, int]:
    """Return pixels, output and input channels of a tile, at least 16 each for tl.dot, and its warps.

    If every element has its own address (not `narrow`), more threads share the addresses.
    """
    block_c = min(64, max(16, triton.next_power_of_2(channels)))
    warps = 4 if narrow else 8
    if itemsize == 4:
        return 32, min(32, block_c), 16, warps
    return 64, block_c, 32, warps


def forward(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    relu: tuple[int, int],
    channels_last: bool,
) -> Tensor:
    """Return conv3x3(cat(xs), stride 2, padding 1) + bias + addend, the channels in range(*relu) through a ReLU."""
    batch, _, height_in, width_in = xs[0].shape
    channels, all_channels = weight.shape[:2]
    height, width = (height_in + 1) // 2, (width_in + 1) // 2
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (batch, channels, height, width)
    out = torch.empty(shape, dtype=xs[0].dtype, device=xs[0].device, memory_format=layout)
    if out.numel() == 0:
        return out
    far = wide(xs if addend is None else [*xs, addend], weight.numel())
    block_p, block_c, block_i, warps = tile(channels, out.element_size(), vectors(xs) and not far)
    grid = (batch * triton.cdiv(height * width, block_p), triton.cdiv(channels, block_c))
    launch(
        strided_conv_chain_kernel, grid, out.device,
        out, tuple(xs), weight.permute(0, 2, 3, 1).contiguous(), out if bias is None else bias.contiguous(),
        out if addend is None else addend, tuple(x.shape[1] for x in xs),
        *(tuple(x.stride(d) for x in xs) for d in range(4)), all_channels, height_in, width_in,
        channels, height, width, *(out if addend is None else addend).stride(), *relu,
        INPUTS=len(xs), BIAS=bias is not None, ADDEND=addend is not None, RELU=relu[0] < relu[1],
        CHANNELS_LAST=channels_last, WIDE=far, WIDEN=interpreting(), BLOCK_P=block_p, BLOCK_C=block_c, BLOCK_I=block_i,
        num_warps=warps,
    )  # fmt: skip
    return out
