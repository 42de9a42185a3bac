"""The memory layout that fused blocks compute in, whatever the one of their input.

On CPUs oneDNN brings contiguous maps into a layout of its own for every convolution and back after it; channels-last it
takes as they are. So a contiguous map is laid out anew once per chain, and so is the result: callers find the layout
that plain modules would have given them, since ``view`` and the like depend on it. Fusions, whose few convolutions do
not repay that, compute in the layout they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor


def working(x: Tensor) -> Tensor:
    """`x` as the blocks compute with it."""
    plain = x.device.type == "cpu" and x.dtype != torch.float64 and x.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last) if plain and torch.backends.mkldnn.enabled else x  # type: ignore[attr-defined]


def as_given(result: Tensor, x: Tensor) -> Tensor:
    """`result` in the layout that plain modules give for an input `x`."""
    return result.contiguous() if x.is_contiguous() and x.device.type == "cpu" else result


def as_laid(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the layout of `other`."""
    return x.contiguous() if other.is_contiguous() else x.contiguous(memory_format=torch.channels_last)
