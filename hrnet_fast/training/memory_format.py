"""The memory layout that fused blocks compute in, whatever the one of their input.

On CPUs oneDNN brings contiguous maps into a layout of its own for every convolution and back after it; channels-last it
takes as they are. So a contiguous map is laid out anew once per chain, and so is the result: callers find the layout
that plain modules would have given them, since ``view`` and the like depend on it. Fusions, whose few convolutions do
not repay that, compute in the layout they are given.

On AVX-512 the layout decides about rounding too. oneDNN adds a 3x3 window of a channels-last map in one sequence, over
all channels, and one of a contiguous map by 16 channels, which loses half as much at 64 channels. Training that was
given contiguous float32 maps therefore adds long windows by blocks of channels too (:func:`sums_by_channel_blocks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.ops.common import memory_format_of


def in_compute_format(x: Tensor) -> Tensor:
    """`x` as chains compute with it."""
    return x.contiguous(memory_format=torch.channels_last) if _moves(x) else x


def _moves(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype == torch.float64 or not torch.backends.mkldnn.enabled:  # type: ignore[attr-defined]
        return False
    return not x.is_contiguous(memory_format=torch.channels_last)


def sums_by_channel_blocks(x: Tensor) -> bool:
    """Whether chains in training on `x` shall add long windows by blocks of channels, to round as plain modules do."""
    # Not torch.backends.cpu's capability, which an environment variable lowers: oneDNN asks the processor.
    return x.dtype == torch.float32 and _moves(x) and torch.cpu._is_avx512_supported()


def in_input_format(result: Tensor, x: Tensor) -> Tensor:
    """`result` in the layout that plain modules give for an input `x`."""
    return result if x.device.type != "cpu" or memory_format_of(x) is torch.channels_last else result.contiguous()


def in_format_of(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the layout of `other`."""
    return x.contiguous() if other.is_contiguous() else x.contiguous(memory_format=torch.channels_last)
