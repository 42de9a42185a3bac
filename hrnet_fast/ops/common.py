"""Helpers of the operators: argument checks, memory formats, autocast, and convolutions' gradients by the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.errors import InputError, shown

MAX_TERMS = 8  # of a sum
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def pair_of(size: object) -> tuple[Any, ...]:
    """Return `size` as a tuple; an empty one where it is no sequence."""
    return tuple(size) if isinstance(size, Sequence) and not isinstance(size, (str, bytes)) else ()


def check_sum(operator: str, xs: Sequence[Tensor], mode: str, activation: object) -> None:
    """Raise InputError unless a sum of resampled terms has 1 to 8 of them, and a known mode and activation."""
    if not 1 <= len(xs) <= MAX_TERMS:
        raise InputError(f"{operator}: {len(xs)} terms given; 1 to {MAX_TERMS} are accepted.")
    if mode not in ("bilinear", "nearest"):
        raise InputError(f"{operator}: mode {mode!r}; accepted are 'bilinear' and 'nearest'.")
    if activation is not None and activation != "relu":
        raise InputError(f"{operator}: activation {shown(activation)}; accepted are 'relu' and None.")


def target_size(operator: str, xs: Sequence[Tensor], size: object, least: int) -> tuple[int, int]:
    """Return (H, W) of the result of interpolating terms: the first's where `size` is None.

    Raises:
        InputError: it is no pair of integers of at least `least`, or a term without pixels has another size.
    """
    target = tuple(xs[0].shape[-2:]) if size is None else pair_of(size)
    if len(target) != 2 or any(not isinstance(s, (int, torch.SymInt)) or s < least for s in target):
        raise InputError(f"{operator}: size {shown(size)}; give (H, W), two integers of at least {least}.")
    if any(0 in x.shape[-2:] and tuple(x.shape[-2:]) != target for x in xs):
        raise InputError(f"{operator}: a term without pixels cannot be interpolated to {target[0]}x{target[1]}.")
    return target[0], target[1]


def check_dtype(operator: str, x: Tensor) -> None:
    """Raise InputError unless operators take the dtype of `x`."""
    if x.dtype not in DTYPES:
        raise InputError(f"{operator}: {x.dtype} given; float64, float32, bfloat16 and float16 are accepted.")


def check_like(operator: str, what: str, tensor: Tensor, first: Tensor) -> None:
    """Raise InputError unless `tensor` has the dtype and device of the first input."""
    if tensor.dtype != first.dtype or tensor.device != first.device:
        raise InputError(
            f"{operator}: {what} is {tensor.dtype} on {tensor.device}; all must be {first.dtype} on {first.device}, as "
            "the first is."
        )


def check_map(operator: str, what: str, tensor: Tensor | None, shape: tuple[int, ...], first: Tensor) -> None:
    """Raise InputError unless `tensor` is absent, or of `shape` with the dtype and device of the first input."""
    if tensor is not None and (
        tuple(tensor.shape) != shape or tensor.dtype != first.dtype or tensor.device != first.device
    ):
        raise InputError(
            f"{operator}: {what} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it must be {first.dtype} "
            f"{list(shape)} on {first.device}."
        )


def check_bias(operator: str, what: str, bias: Tensor | None, channels: int, device: torch.device) -> None:
    """Raise InputError unless `bias` is absent, or of any floating dtype with one value for each channel."""
    if bias is not None and (tuple(bias.shape) != (channels,) or bias.device != device or not bias.is_floating_point()):
        raise InputError(
            f"{operator}: {what} is {bias.dtype} {list(bias.shape)} on {bias.device}; it must be floating [{channels}] "
            f"on {device}."
        )


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the format of a map by its strides: a slice of channels is contiguous in neither format, yet has one."""
    return torch.channels_last if x.stride(1) == 1 and x.stride(3) != 1 else torch.contiguous_format


def format_of_largest(xs: Sequence[Tensor]) -> torch.memory_format:
    """Return the format of the largest map: the one that would cost most to copy."""
    return memory_format_of(max(xs, key=lambda x: x.shape[-2] * x.shape[-1]))


def dense_format(tensor: Tensor) -> torch.memory_format:
    """Return channels-last for a tensor that is contiguous in that format alone, else the contiguous format."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def unaliased(tensor: Tensor, layout: torch.memory_format, others: Sequence[Tensor]) -> Tensor:
    """Return `tensor` in `layout`, copied where it would share memory with one of `others`: operators may not alias."""
    result = tensor.contiguous(memory_format=layout)
    # By storages and not addresses: a part of a split may already have that layout, or be empty.
    storage = result.untyped_storage()._cdata
    shared = any(storage == t.untyped_storage()._cdata for t in others)
    return result.clone(memory_format=layout) if shared else result


def cast_for_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return the tensors cast as autocast casts a convolution's arguments; float64 ones, and all without it, stay."""
    device = next(t for t in tensors if t is not None).device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    halves = (torch.float32, torch.bfloat16, torch.float16)
    return [t.to(dtype) if t is not None and t.dtype in halves else t for t in tensors]


def wrong_in_bfloat16(
    x: Tensor, kernel: int, stride: int, padding: int | None = None, dilation: int = 1, width: int | None = None
) -> bool:
    """Whether oneDNN's bfloat16 convolution is wrong: strided, with one column of results (torch 2.13).

    Results are then wrong, and taps of the weight's gradient stay unwritten: compute in float32 instead.

    Args:
        x: the input, or the gradient of the result with the input's `width`.
        kernel, stride, padding, dilation: along the width; padding None is half the kernel.
    """
    if x.dtype != torch.bfloat16 or stride == 1 or x.device.type != "cpu":
        return False
    width = x.shape[-1] if width is None else width
    padding = kernel // 2 if padding is None else padding
    return (width + 2 * padding - dilation * (kernel - 1) - 1) // stride == 0


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
    if wrong_in_bfloat16(grad, weight.shape[-1], stride, pad, width=shape[-1]):
        wide = (grad.float(), x.float(), shape, weight.float(), stride, want_x, want_weight)
        gradients = convolution_gradients(*wide)
        return tuple(None if g is None else g.to(grad.dtype) for g in gradients)  # type: ignore[return-value]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride, stride], [pad, pad], [1, 1], False, [0, 0], 1, [want_x, want_weight, False]
    )
    return found[0], found[1]


def bias_gradient(grad: Tensor, bias: Tensor) -> Tensor:
    """Gradient of a bias: one sum over all pixels of a batch, hence at least in float32."""
    wide = torch.float64 if bias.dtype == torch.float64 else torch.float32
    return grad.sum((0, 2, 3), dtype=wide).to(bias.dtype)
