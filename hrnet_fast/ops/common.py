"""What the operators around convolutions share: layouts, autocast, gradients through the library's convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layout_of(x: Tensor) -> torch.memory_format:
    """The layout of a map, told by its strides: a slice of channels is contiguous in neither format, yet has one."""
    return torch.channels_last if x.stride(1) == 1 and x.stride(3) != 1 else torch.contiguous_format


def settled(tensor: Tensor, layout: torch.memory_format, taken: Sequence[Tensor]) -> Tensor:
    """`tensor` as an operator may return it: laid out as its fake promises, sharing memory with none of `taken`."""
    result = tensor.contiguous(memory_format=layout)
    # By storages and not addresses: a part of a split may already be laid out as it should, or be empty.
    storage = result.untyped_storage()._cdata
    shared = any(storage == t.untyped_storage()._cdata for t in taken)
    return result.clone(memory_format=layout) if shared else result


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast as autocast casts a convolution's arguments; float64 stays. Unchanged where autocast is off."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    halves = (torch.float32, torch.bfloat16, torch.float16)
    return [t.to(dtype) if t is not None and t.dtype in halves else t for t in tensors]


def leaves_taps_unwritten(grad: Tensor, stride: int, width: int) -> bool:
    """Whether oneDNN's bfloat16 weight gradient would leave the taps that no column reaches unwritten (torch 2.13).

    Such a gradient is computed in float32.
    """
    return grad.dtype == torch.bfloat16 and grad.device.type == "cpu" and stride > 1 and width == 1


def convolution_gradients(
    grad: Tensor, x: Tensor | None, shape: Sequence[int], weight: Tensor, stride: int, want_x: bool, want_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the convolution of `x`, [N, C, h, w] of `shape`, with a square `weight` padded by half its side.

    `x` may be None where only its own gradient is wanted.
    """
    if x is None:
        assert not want_weight
        x = grad.new_empty(1).expand(*shape)
    pad = weight.shape[-1] // 2
    if leaves_taps_unwritten(grad, stride, shape[-1]):
        wide = (grad.float(), x.float(), shape, weight.float(), stride, want_x, want_weight)
        gradients = convolution_gradients(*wide)
        return tuple(None if g is None else g.to(grad.dtype) for g in gradients)  # type: ignore[return-value]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride, stride], [pad, pad], [1, 1], False, [0, 0], 1, [want_x, want_weight, False]
    )
    return found[0], found[1]
