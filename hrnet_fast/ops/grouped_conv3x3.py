"""The operator ``grouped_conv3x3``: corresponding 3x3 convolutions of all branches of a stage in one launch.

The branches of an HRNet stage do equal work at four resolutions (paper, section 3.1), each too little to fill a GPU at
batch 1. Weights may be packed once and used at every call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_tensors, check_text
from hrnet_fast.errors import InputError
from hrnet_fast.implementations import select_implementation
from hrnet_fast.kernels.packing import pack, unpack
from hrnet_fast.ops.common import (
    bias_gradient,
    cast_for_autocast,
    check_dtype,
    check_like,
    check_map,
    convolution_gradients,
)
from hrnet_fast.ops.packed_conv3x3 import MAX_BRANCHES, NAME, PackedConv3x3, check_weights, checked_biases, each


def grouped_conv3x3(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor] | PackedConv3x3,
    *,
    biases: Sequence[Tensor | None] | None = None,
    residuals: Sequence[Tensor | None] | None = None,
    relu: bool = True,
    impl: str = "auto",
) -> list[Tensor]:
    """Return act(conv3x3(x_k, weight_k, stride 1, padding 1) + bias_k + residual_k) of every branch k.

    Args:
        xs: one to eight inputs [N, C_k, H_k, W_k] of one floating dtype and device; any strides, channels-last is fast.
        weights: [O_k, C_k, 3, 3] of each branch in the inputs' dtype; or all packed, with their biases.
        biases: [O_k] or None for each; or None.
        residuals: [N, O_k, H_k, W_k] in the inputs' dtype or None for each; or None.
        relu: whether a ReLU follows.
        impl: ``"auto"``, ``"reference"`` (the library's convolutions, one after the other) or ``"triton"`` (no float64;
            float32 products are TF32's where ``torch.backends.cudnn`` allows its convolutions that).

    Returns:
        [N, O_k, H_k, W_k] of each branch, channels-last, in the inputs' dtype. Differentiable in every tensor, but not
        with packed weights; keeps the inputs, and the results where they were activated. Under autocast, in its dtype.

    Raises:
        InputError: inputs, weights, biases or residuals that do not fit.
        ImplementationError: a named implementation that cannot run here.
    """
    inputs: list[Tensor] = check_tensors(NAME, "xs", xs)
    check_bool(NAME, relu=relu)
    check_text(NAME, impl=impl)
    if not 1 <= len(inputs) <= MAX_BRANCHES:
        raise InputError(f"{NAME}: {len(inputs)} inputs given; 1 to {MAX_BRANCHES} are accepted.")
    if isinstance(weights, PackedConv3x3):
        if biases is not None:
            raise InputError(f"{NAME}: packed weights hold their biases; give none beside them.")
        return _packed(inputs, weights, residuals, relu, impl)
    given: list[Tensor] = check_tensors(NAME, "weights", weights)
    check_weights(given)
    added = checked_biases(given, biases)
    n = len(inputs)
    cast = cast_for_autocast(*inputs, *given, *each(residuals, n, "residuals"))
    inputs, given, maps = cast[:n], cast[n:-n], cast[-n:]  # type: ignore[assignment]
    _check_inputs(inputs, [(w.shape[0], w.shape[1]) for w in given], maps)
    check_like(NAME, "weight 0", given[0], inputs[0])
    absent = inputs[0].new_empty(0)
    result: list[Tensor] = _forward(
        inputs,
        given,
        [absent if b is None else b for b in added],
        [absent if r is None else r for r in maps],
        relu,
        impl,
    )
    return result


def _packed(
    inputs: list[Tensor], packed: PackedConv3x3, residuals: Sequence[Tensor | None] | None, relu: bool, impl: str
) -> list[Tensor]:
    n = len(inputs)
    cast = cast_for_autocast(*inputs, packed.weight, *each(residuals, n, "residuals"))
    inputs, weight, maps = cast[:n], cast[n], cast[n + 1 :]  # type: ignore[assignment]
    _check_inputs(inputs, packed.channels, maps)
    assert weight is not None
    check_like(NAME, "packed weight", weight, inputs[0])
    present = [inputs[0].new_empty(0) if r is None else r for r in maps]
    flat = [c for pair in packed.channels for c in pair]
    result: list[Tensor] = _forward_packed(inputs, weight, packed.bias, flat, present, relu, impl)
    return result


def _check_inputs(xs: list[Tensor], channels: Sequence[tuple[int, int]], residuals: Sequence[Tensor | None]) -> None:
    first = xs[0]
    if len(channels) != len(xs):
        raise InputError(f"{NAME}: {len(channels)} weights for {len(xs)} inputs; give one for each.")
    check_dtype(NAME, first)
    for k, (x, (c_out, c_in), residual) in enumerate(zip(xs, channels, residuals, strict=True)):
        if x.dim() != 4 or x.shape[0] != first.shape[0] or 0 in x.shape[1:]:
            raise InputError(
                f"{NAME}: input {k} has shape {tuple(x.shape)}; all are [N, C, H, W], not empty but for N, with the N "
                f"of the first, {first.shape[0]}."
            )
        check_like(NAME, f"input {k}", x, first)
        if x.shape[1] != c_in:
            raise InputError(f"{NAME}: input {k} has {x.shape[1]} channels; its weight takes {c_in}.")
        check_map(NAME, f"residual {k}", residual, (x.shape[0], c_out, *x.shape[2:]), first)


def _present(tensors: Sequence[Tensor], dims: int) -> list[Tensor | None]:
    """Return None for absent ones, which are empty and of one dimension: operators take lists of tensors only."""
    return [None if t.dim() != dims or (dims == 1 and t.numel() == 0) else t for t in tensors]


@torch.library.custom_op(f"hrnet_fast::{NAME}", mutates_args=())
def _forward(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    residuals: Sequence[Tensor],
    relu: bool,
    impl: str,
) -> list[Tensor]:
    # Selected here and not by the caller: a compiled graph does not trace the selection.
    if select_implementation(NAME, impl, xs[0]) == "triton":
        from hrnet_fast.kernels.triton.grouped_conv3x3 import forward

        weight, bias = pack(weights, _present(biases, 1))
        return forward(xs, weight, bias, [w.shape[0] for w in weights], residuals, relu)
    return _reference(xs, weights, _present(biases, 1), residuals, relu)


@torch.library.custom_op(f"hrnet_fast::{NAME}_packed", mutates_args=())
def _forward_packed(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    channels: Sequence[int],
    residuals: Sequence[Tensor],
    relu: bool,
    impl: str,
) -> list[Tensor]:
    if select_implementation(NAME, impl, xs[0]) == "triton":
        from hrnet_fast.kernels.triton.grouped_conv3x3 import forward

        return forward(xs, weight, bias, channels[::2], residuals, relu)
    weights, biases = unpack(weight, bias, list(zip(channels[::2], channels[1::2], strict=True)))
    return _reference(xs, [w.contiguous() for w in weights], biases, residuals, relu)


def _reference(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residuals: Sequence[Tensor],
    relu: bool,
) -> list[Tensor]:
    from hrnet_fast.reference.grouped_conv3x3 import grouped_conv3x3 as reference

    outs = reference(xs, weights, biases, _present(residuals, 4), relu)
    return [out.contiguous(memory_format=torch.channels_last) for out in outs]


def _empty(xs: Sequence[Tensor], channels: Sequence[int]) -> list[Tensor]:
    shapes = ((x.shape[0], c, *x.shape[2:]) for x, c in zip(xs, channels, strict=True))
    layout = torch.channels_last
    return [torch.empty(s, dtype=xs[0].dtype, device=xs[0].device, memory_format=layout) for s in shapes]


@_forward.register_fake
def _forward_fake(xs, weights, biases, residuals, relu, impl):  # type: ignore[no-untyped-def]
    return _empty(xs, [w.shape[0] for w in weights])


@_forward_packed.register_fake
def _forward_packed_fake(xs, weight, bias, channels, residuals, relu, impl):  # type: ignore[no-untyped-def]
    return _empty(xs, channels[::2])


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    xs, weights, biases, residuals, ctx.relu, _ = inputs
    ctx.shapes = [x.shape for x in xs]
    ctx.wanted = [t.requires_grad for t in (*xs, *weights, *biases, *residuals)]
    absent = xs[0].new_empty(0)
    # An input's values are needed for its weight's gradient alone.
    kept = [x if w.requires_grad else absent for x, w in zip(xs, weights, strict=True)]
    ctx.save_for_backward(*(output if ctx.relu else [absent] * len(xs)), *kept, *weights, *biases)


def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    """The library's convolutions compute the gradients in every implementation."""
    n = len(grads)
    outs, xs, weights, biases = (ctx.saved_tensors[j * n : (j + 1) * n] for j in range(4))
    found: list[Tensor | None] = [None] * (4 * n)
    for k, grad in enumerate(grads):
        want_x, want_weight, want_bias, want_residual = ctx.wanted[k::n]
        masked = torch.ops.aten.threshold_backward(grad, outs[k], 0) if ctx.relu else grad
        if want_x or want_weight:
            x = xs[k] if want_weight else None
            found[k], found[n + k] = convolution_gradients(masked, x, ctx.shapes[k], weights[k], 1, want_x, want_weight)
        if want_bias:
            found[2 * n + k] = bias_gradient(masked, biases[k])
        if want_residual:
            found[3 * n + k] = masked
    return found[:n], found[n : 2 * n], found[2 * n : 3 * n], found[3 * n :], None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
