"""The operator ``strided_conv_chain``: one level of a fusion's stride-2 chains, with normalisations folded.

All 3x3 stride-2 convolutions that leave one resolution are one convolution with stacked outputs; those that are summed
at the next one have stacked inputs (paper, section 3.2). ReLU follows where a chain continues, not where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_tensor, check_tensors, check_text
from hrnet_fast.errors import InputError, shown
from hrnet_fast.implementations import select_implementation
from hrnet_fast.ops.common import (
    bias_gradient,
    cast_for_autocast,
    check_bias,
    check_dtype,
    check_like,
    check_map,
    convolution_gradients,
    memory_format_of,
    pair_of,
    unaliased,
)

NAME = "strided_conv_chain"
MAX_INPUTS = 8


def strided_conv_chain(
    xs: Sequence[Tensor],
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    relu: tuple[int, int] | bool | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return conv3x3(cat(xs), weight, stride 2, padding 1) + bias + addend, some of its channels through a ReLU.

    Args:
        xs: one to eight inputs [N, C_i, H, W] of one floating dtype and device; channels-last, contiguous or any
            strides. The Triton implementation never writes their concatenation.
        weight: [C_out, sum of C_i, 3, 3] in the inputs' dtype.
        bias: [C_out], or None.
        addend: [N, C_out, H', W'] in the inputs' dtype with H' = (H + 1) // 2, W' = (W + 1) // 2; or None.
        relu: True for a ReLU on all output channels, (begin, end) for those in that range, None or False for none.
        impl: ``"auto"``, ``"reference"`` (the library's convolution) or ``"triton"`` (no float64).

    Returns:
        [N, C_out, H', W'] in the inputs' dtype, laid out as the input with the most channels. Differentiable in every
        tensor; keeps the inputs, and the result where a part of it was activated. Under autocast, in its dtype.

    Raises:
        InputError: inputs, a weight, a bias, an addend or a range that do not fit.
        ImplementationError: a named implementation that cannot run here.
    """
    inputs = check_tensors(NAME, "xs", xs)
    check_tensor(NAME, "weight", weight)
    check_text(NAME, impl=impl)
    for name, tensor in (("bias", bias), ("addend", addend)):
        check_tensor(NAME, name, tensor, optional=True)
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InputError(f"{NAME}: {len(inputs)} inputs given; 1 to {MAX_INPUTS} are accepted.")
    cast = cast_for_autocast(*inputs, weight, bias, addend)
    inputs = [t for t in cast[: len(inputs)] if t is not None]
    weight, bias, addend = cast[-3], cast[-2], cast[-1]  # type: ignore[assignment]
    _check_inputs(inputs, weight)
    check_bias(NAME, "bias", bias, weight.shape[0], weight.device)
    check_map(NAME, "addend", addend, _shape(inputs[0], weight), inputs[0])
    begin, end = _range(relu, weight.shape[0])
    result: Tensor = _forward(inputs, weight, bias, addend, begin, end, impl)
    return result


def _check_inputs(xs: list[Tensor], weight: Tensor) -> None:
    first = xs[0]
    for k, x in enumerate(xs):
        if x.dim() != 4 or (x.shape[0], *x.shape[2:]) != (first.shape[0], *first.shape[2:]) or 0 in x.shape[1:]:
            raise InputError(
                f"{NAME}: input {k} has shape {tuple(x.shape)}; all are [N, C, H, W], not empty but for N, with the N, "
                f"H and W of the first, {tuple(first.shape)}."
            )
        check_like(NAME, f"input {k}", x, first)
    check_dtype(NAME, first)
    channels = sum(x.shape[1] for x in xs)
    if weight.dim() != 4 or weight.shape[0] < 1 or tuple(weight.shape[1:]) != (channels, 3, 3):
        raise InputError(
            f"{NAME}: weight has shape {tuple(weight.shape)}; for inputs of {channels} channels together it must be "
            f"[C_out, {channels}, 3, 3]."
        )
    check_like(NAME, "weight", weight, first)


def _range(relu: tuple[int, int] | bool | None, channels: int) -> tuple[int, int]:
    """Return the first activated channel and the one behind the last; equal where there are none."""
    if relu is None or isinstance(relu, bool):
        return 0, channels if relu else 0
    pair = pair_of(relu)
    if len(pair) != 2 or any(not isinstance(r, int) or isinstance(r, bool) for r in pair):
        raise InputError(f"{NAME}: relu {shown(relu)}; give True, None or (begin, end), two integers.")
    if not 0 <= pair[0] <= pair[1] <= channels:
        raise InputError(f"{NAME}: relu {relu!r} is no range of the {channels} output channels.")
    return pair[0], pair[1]


def _shape(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    return x.shape[0], weight.shape[0], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2


def _result_format(xs: Sequence[Tensor]) -> torch.memory_format:
    """The layout of the input with the most channels: the one that a concatenation would cost most to copy."""
    return memory_format_of(max(xs, key=lambda x: x.shape[1]))


def strided_conv_chain_forward(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    relu_begin: int,
    relu_end: int,
    impl: str,
) -> Tensor:
    """Compute :func:`strided_conv_chain` without checks and autograd: for callers that need none."""
    # Selected here and not by the caller: a compiled graph does not trace the selection.
    layout = _result_format(xs)
    if select_implementation(NAME, impl, xs[0]) == "triton":
        from hrnet_fast.kernels.triton.strided_conv_chain import forward

        return forward(xs, weight, bias, addend, (relu_begin, relu_end), layout is torch.channels_last)
    from hrnet_fast.reference.strided_conv_chain import strided_conv_chain as reference

    return unaliased(reference(xs, weight, bias, addend, (relu_begin, relu_end)), layout, xs)


_forward = torch.library.custom_op(f"hrnet_fast::{NAME}", strided_conv_chain_forward, mutates_args=())


@_forward.register_fake
def _forward_fake(xs, weight, bias, addend, relu_begin, relu_end, impl):  # type: ignore[no-untyped-def]
    return torch.empty(_shape(xs[0], weight), dtype=xs[0].dtype, device=xs[0].device, memory_format=_result_format(xs))


def _masked(grad: Tensor, out: Tensor, begin: int, end: int) -> Tensor:
    """Return the gradient with zeros where the activation is zero."""
    if begin == end:
        return grad
    if begin == 0 and end == grad.shape[1]:
        whole: Tensor = torch.ops.aten.threshold_backward(grad, out, 0)
        return whole
    masked = grad.contiguous(memory_format=memory_format_of(grad)).clone()
    masked[:, begin:end] = torch.ops.aten.threshold_backward(grad[:, begin:end], out[:, begin:end], 0)
    return masked


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    xs, weight, bias, addend, ctx.begin, ctx.end, _ = inputs
    ctx.shapes = [x.shape for x in xs]
    ctx.wanted = [t is not None and t.requires_grad for t in (*xs, weight, bias, addend)]
    absent = output.new_empty(0)
    # Inputs' values are needed for the weight's gradient alone.
    kept = list(xs) if weight.requires_grad else [absent] * len(xs)
    ctx.save_for_backward(output if ctx.begin < ctx.end else absent, *kept, weight, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    """The library's convolution computes the gradients in every implementation."""
    out, *xs, weight, bias = ctx.saved_tensors
    *want_xs, want_weight, want_bias, want_addend = ctx.wanted
    channels = [shape[1] for shape in ctx.shapes]
    of_xs: list[Tensor | None] = [None] * len(xs)
    of_weight: Tensor | None = None
    masked = _masked(grad, out, ctx.begin, ctx.end)
    if any(want_xs) or want_weight:
        joined = torch.cat(xs, dim=1) if want_weight else None
        shape = (grad.shape[0], sum(channels), *ctx.shapes[0][2:])
        of_joined, of_weight = convolution_gradients(masked, joined, shape, weight, 2, any(want_xs), want_weight)
        if of_joined is not None:
            parts = torch.split_with_sizes(of_joined, channels, dim=1)
            of_xs = [part if want else None for part, want in zip(parts, want_xs, strict=True)]
    of_bias = bias_gradient(masked, bias) if want_bias else None
    return of_xs, of_weight, of_bias, masked if want_addend else None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
