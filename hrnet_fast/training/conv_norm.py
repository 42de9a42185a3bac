"""A convolution with its batch normalisation: its description at a call, and its passes forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hrnet_fast.ops.primitives import BnActPrimitives, joint_sums, values_per_channel, wrong_in_bfloat16
from hrnet_fast.training.batch_norm import NormCall, ValueCount, normalise

NoneOr = Tensor | None
PER_STEP = 4  # parameters: the convolution's weight and bias, the normalisation's scale and shift
LONG = 64  # input channels from which on a convolution may be summed by blocks of channels


class ConvNorm(NamedTuple):
    """One convolution and its normalisation at a call."""

    weight: Tensor
    bias: NoneOr
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    norm: NormCall

    def parameters(self) -> tuple[NoneOr, ...]:
        return self.weight, self.bias, self.norm.norm.weight, self.norm.norm.bias


class SavedConv(NamedTuple):
    """A convolution's output, its normalisation's affine [4, C], and the number of values per channel behind that.

    ``activation`` is the next convolution's input, where it is kept.
    """

    y: Tensor
    affine: Tensor
    count: ValueCount  # type: ignore[assignment]
    activation: NoneOr = None

    def activated(self, primitives: BnActPrimitives) -> Tensor:
        """Return the next convolution's input."""
        return self.activation if self.activation is not None else primitives.bn_act(self.y, self.affine, None, True)

    def input_gradient(
        self, primitives: BnActPrimitives, grad: Tensor, sums: Tensor, norm: NormCall, relu: bool
    ) -> Tensor:
        """Return the gradient of `y` from that of its normalisation, masked by the ReLU behind it if `relu`.

        `sums` are this process's. Where processes share their statistics, those of all are added up here.
        """
        count = self.count
        if isinstance(count, Tensor):
            sums, count = joint_sums(sums, self.y, count, norm.group), float(values_per_channel(self.y))
        return primitives.backward_input(grad, self.y, self.affine, sums, count, relu)


def conv_norm(
    primitives: BnActPrimitives, x: Tensor, step: ConvNorm, blocks: bool, known: tuple[Tensor, ValueCount] | None
) -> SavedConv:
    """Convolve `x`, and find the affine of the result's normalisation unless it is known.

    Args:
        blocks: sum long windows by blocks of channels: see :mod:`hrnet_fast.training.memory_format`.
        known: the affine and its count, from an earlier run on the same values.
    """
    long = x.shape[1] >= LONG and step.weight.shape[2:].numel() > 1 and step.groups == 1
    y = _convolve_by_blocks(x, step) if blocks and long else convolve(x, step.weight, step.bias, step)
    affine, count = known or normalise(primitives, [y], [step.norm])[0]
    return SavedConv(y, affine, count)


def convolve(x: Tensor, weight: Tensor, bias: NoneOr, step: ConvNorm) -> Tensor:
    """Return the convolution of `x` in its dtype, with the geometry of `step`."""
    if wrong_in_bfloat16(x, weight.shape[-1], step.stride[-1], step.padding[-1], step.dilation[-1]):
        return convolve(x.float(), weight.float(), bias, step).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    # Not torch.ops.aten.convolution: its dispatch takes twice the host time, which counts for small maps.
    return torch.convolution(
        x, _cast(weight, x.dtype), bias, step.stride, step.padding, step.dilation, False, (0, 0), step.groups
    )


def _convolve_by_blocks(x: Tensor, step: ConvNorm) -> Tensor:
    """Return the step's convolution as a sum over at most eight blocks of 16 or more input channels."""
    blocks = min(8, x.shape[1] // 16)
    parts = zip(x.chunk(blocks, 1), step.weight.chunk(blocks, 1), strict=True)
    result = convolve(*next(parts), step.bias, step)
    for part, weight in parts:
        result.add_(convolve(part, weight, None, step))
    return result


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, without a call where it would do nothing: there are thousands in a training step."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, step: ConvNorm, want: tuple[bool, bool, bool]
) -> tuple[NoneOr, NoneOr, NoneOr]:
    """Return the wanted gradients of input, weight and bias, the parameters' in the weight's dtype."""
    if not any(want):
        return None, None, None
    dtype = x.dtype
    if wrong_in_bfloat16(grad, weight.shape[-1], step.stride[-1], step.padding[-1], step.dilation[-1], x.shape[-1]):
        grad, x = grad.float(), x.float()
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad, x, _cast(weight, x.dtype), [weight.shape[0]], step.stride, step.padding, step.dilation, False, [0, 0],
        step.groups, want,
    )  # fmt: skip
    dx = None if dx is None else _cast(dx, dtype)
    own = weight.dtype
    return dx, None if dw is None else _cast(dw, own), None if db is None else _cast(db, own)


def conv_norm_backward(
    dy: Tensor, x: Tensor, step: ConvNorm, sums: Tensor, parameters: Sequence[NoneOr], want: Sequence[bool],
    want_x: bool,
) -> tuple[NoneOr, tuple[NoneOr, ...]]:  # fmt: skip
    """Return the gradients of the input and of the step's parameters, from that of the convolution's output.

    Args:
        sums: [2, C], the gradients of the normalisation's shift and scale.
        parameters, want: the step's come first.
    """
    weight, bias, scale, shift = parameters[:PER_STEP]
    assert weight is not None
    dx, dw, db = convolve_backward(dy, x, weight, step, (want_x, want[0], want[1] and bias is not None))
    return dx, (dw, db, norm_gradient(sums[1], scale, want[2]), norm_gradient(sums[0], shift, want[3]))


def norm_gradient(values: Tensor, parameter: NoneOr, wanted: bool) -> NoneOr:
    """Return `values` in the parameter's dtype if its gradient is wanted."""
    return _cast(values, parameter.dtype) if wanted and parameter is not None else None


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype of convolutions of `x` under the autocast that is on, or None where none is."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)
