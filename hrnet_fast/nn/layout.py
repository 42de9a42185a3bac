"""The memory layout that fused blocks compute in, whatever the one of their input.

On CPUs oneDNN brings contiguous maps into a layout of its own for every convolution and back after it; channels-last it
takes as they are. So a contiguous map is laid out anew once per chain, and so is the result: callers find the layout
that plain modules would have given them, since ``view`` and the like depend on it. Fusions, whose few convolutions do
not repay that, compute in the layout they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.ops.common import layout_of


def working(x: Tensor) -> Tensor:
    """`x` as chains compute with it."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or not torch.backends.mkldnn.enabled:  # type: ignore[attr-defined]
        return x
    return x.contiguous(memory_format=torch.channels_last)


def as_given(result: Tensor, x: Tensor) -> Tensor:
    """`result` in the layout that plain modules give for an input `x`."""
    return result if x.device.type != "cpu" or layout_of(x) is torch.channels_last else result.contiguous()


def as_laid(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the layout of `other`."""
    return x.contiguous() if other.is_contiguous() else x.contiguous(memory_format=torch.channels_last)
