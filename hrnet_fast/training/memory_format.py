"""Memory formats of fused blocks: the one they compute in, and the one that callers get back.

On CPUs oneDNN converts contiguous maps for every convolution and converts its result back; it takes channels-last maps
as they are. So a chain converts a contiguous input once, and its result back once: callers find the format that plain
modules would have returned, since ``view`` and the like depend on it. Fusions have too few convolutions in a row to
repay that, and compute in the format of their inputs.

On AVX-512 the format decides about rounding too. oneDNN sums a 3x3 window of a channels-last map in one sequence over
all channels, and one of a contiguous map by 16 channels, which rounds half as much at 64 channels. Training on
contiguous float32 maps therefore sums long windows by blocks of channels too (:func:`sums_by_channel_blocks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.ops.primitives import memory_format_of


def in_compute_format(x: Tensor) -> Tensor:
    """Return `x` in the format that chains compute in."""
    return x.contiguous(memory_format=torch.channels_last) if _is_converted(x) else x


def _is_converted(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype == torch.float64 or not torch.backends.mkldnn.enabled:  # type: ignore[attr-defined]
        return False
    return not x.is_contiguous(memory_format=torch.channels_last)


def sums_by_channel_blocks(x: Tensor) -> bool:
    """Whether chains in training on `x` sum long windows by blocks of channels, to round as plain modules do."""
    # Not torch.backends.cpu's capability, which an environment variable lowers: oneDNN reads the processor's.
    return x.dtype == torch.float32 and _is_converted(x) and torch.cpu._is_avx512_supported()


def in_input_format(result: Tensor, x: Tensor) -> Tensor:
    """Return `result` in the format that plain modules return for an input `x`."""
    return result if x.device.type != "cpu" or memory_format_of(x) is torch.channels_last else result.contiguous()
