"""The operator ``upsample_conv1x1_sum``: act(sum_k resample_k(conv1x1(x_k)) + bias) in one launch.

One target of a fusion unit with its normalisations folded (paper, section 3.2 and Figure 3), and HRNetV2's head (Figure
4b) without the concatenation: a 1x1 convolution of concatenated maps is the sum of one per map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_tensor, check_tensors, check_text
from hrnet_fast.errors import InputError
from hrnet_fast.implementations import select_implementation
from hrnet_fast.ops.common import (
    bias_gradient,
    cast_for_autocast,
    check_bias,
    check_dtype,
    check_like,
    check_sum,
    convolution_gradients,
    format_of_largest,
    target_size,
    unaliased,
)
from hrnet_fast.ops.fuse_sum import RESAMPLE

NAME = "upsample_conv1x1_sum"


def upsample_conv1x1_sum(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    *,
    bias: Tensor | None = None,
    size: tuple[int, int] | None = None,
    mode: str = "bilinear",
    align_corners: bool = False,
    activation: str | None = "relu",
    impl: str = "auto",
) -> Tensor:
    """Return act(sum_k resample_k(conv1x1(x_k, weights[k])) + bias), summed in the order of the terms.

    Args:
        xs: one to eight terms [N, C_k, h_k, w_k] of one floating dtype and device; channels-last, contiguous or any
            strides: slices of channels are read where they are.
        weights: [C_out, C_k] or [C_out, C_k, 1, 1] of each term, in its dtype; None for a term of C_out channels that
            is added as it is.
        bias: [C_out], or None.
        size: (H, W) of the result; the first term's by default. Terms of another size are interpolated to it, at any
            ratio, as :func:`torch.nn.functional.interpolate` with ``size=`` does.
        mode: ``"bilinear"`` or ``"nearest"``.
        align_corners: of bilinear interpolation.
        activation: ``"relu"`` or None.
        impl: ``"auto"``, ``"reference"`` or ``"triton"`` (no float64).

    Returns:
        [N, C_out, H, W] in the terms' dtype, laid out as the largest term. Differentiable once in every tensor; keeps
        the result where it was activated, and the terms whose weights want a gradient. Under autocast, in its dtype.

    Raises:
        InputError: terms, weights or a bias that do not fit.
        ImplementationError: a named implementation that cannot run here.
    """
    terms, given = check_tensors(NAME, "xs", xs), check_tensors(NAME, "weights", weights, optional=True)
    check_tensor(NAME, "bias", bias, optional=True)
    check_bool(NAME, align_corners=align_corners)
    check_text(NAME, mode=mode, impl=impl)
    check_sum(NAME, terms, mode, activation)
    if len(given) != len(terms):
        raise InputError(f"{NAME}: {len(given)} weights for {len(terms)} terms; give one, or None, for each.")
    cast = cast_for_autocast(*terms, *given, bias)
    terms = [t for t in cast[: len(terms)] if t is not None]
    matrices = _matrices(terms, cast[len(terms) : -1])
    _check_terms(terms, matrices, cast[-1])
    target = target_size(NAME, terms, size, 1)
    result: Tensor = _forward(
        terms, matrices, cast[-1], list(target), mode, align_corners, activation == "relu", impl
    )  # fmt: skip
    return result


def _matrices(xs: list[Tensor], weights: list[Tensor | None]) -> list[Tensor]:
    """Return weights as [C_out, C_k], an empty tensor for an absent one: operators take lists of tensors only."""
    matrices = []
    for k, weight in enumerate(weights):
        if weight is None:
            matrices.append(xs[0].new_empty(0))
        elif weight.dim() == 2:
            matrices.append(weight)
        elif weight.dim() == 4 and tuple(weight.shape[2:]) == (1, 1):
            matrices.append(weight.flatten(1))
        else:
            raise InputError(
                f"{NAME}: weight {k} has shape {tuple(weight.shape)}; give [C_out, C] or [C_out, C, 1, 1]."
            )
    return matrices


def _check_terms(xs: list[Tensor], matrices: list[Tensor], bias: Tensor | None) -> None:
    first, channels = xs[0], _channels(xs, matrices)
    check_dtype(NAME, first)
    for k, (x, weight) in enumerate(zip(xs, matrices, strict=True)):
        if x.dim() != 4 or x.shape[0] != first.shape[0]:
            raise InputError(
                f"{NAME}: term {k} has shape {tuple(x.shape)}; all terms are [N, C_k, h, w] with the first's N, "
                f"{first.shape[0]}."
            )
        plain = weight.dim() == 1
        if plain and x.shape[1] != channels:
            raise InputError(f"{NAME}: term {k} has {x.shape[1]} channels and no weight; the result has {channels}.")
        if not plain and (tuple(weight.shape) != (channels, x.shape[1]) or 0 in weight.shape):
            raise InputError(
                f"{NAME}: weight {k} is {list(weight.shape)} and its term has {x.shape[1]} channels; it must be "
                f"[{channels}, {x.shape[1]}], neither of them 0."
            )
        for what, tensor in (("term", x), ("weight", weight)):
            check_like(NAME, f"{what} {k}", tensor, first)
    check_bias(NAME, "bias", bias, channels, first.device)


def _channels(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> int:
    return next((w.shape[0] for w in weights if w.dim() == 2), xs[0].shape[1])


@torch.library.custom_op(f"hrnet_fast::{NAME}", mutates_args=())
def _forward(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    size: Sequence[int],
    mode: str,
    align_corners: bool,
    relu: bool,
    impl: str,
) -> Tensor:
    # Selected here and not by the caller: a compiled graph does not trace the selection.
    layout = format_of_largest(xs)
    if select_implementation(NAME, impl, xs[0]) == "triton":
        from hrnet_fast.kernels.triton.upsample_conv1x1_sum import forward

        code = RESAMPLE[mode, align_corners]
        return forward(xs, weights, bias, (size[0], size[1]), code, relu, layout is torch.channels_last)
    from hrnet_fast.reference.upsample_conv1x1_sum import upsample_conv1x1_sum as reference

    matrices = [w if w.dim() == 2 else None for w in weights]
    return unaliased(reference(xs, matrices, bias, (size[0], size[1]), mode, align_corners, relu), layout, xs)


@_forward.register_fake
def _forward_fake(xs, weights, bias, size, mode, align_corners, relu, impl):  # type: ignore[no-untyped-def]
    shape = (xs[0].shape[0], _channels(xs, weights), size[0], size[1])
    return torch.empty(shape, dtype=xs[0].dtype, device=xs[0].device, memory_format=format_of_largest(xs))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    xs, weights, bias, _, ctx.mode, ctx.align_corners, ctx.relu, ctx.impl = inputs
    ctx.shapes = [x.shape for x in xs]
    ctx.wanted = [t is not None and t.requires_grad for t in (*xs, *weights, bias)]
    absent = output.new_empty(0)
    # A term's values are needed for its weight's gradient alone, a weight's for its term's.
    kept = [x if w.requires_grad else absent for x, w in zip(xs, weights, strict=True)]
    ctx.save_for_backward(output if ctx.relu else absent, *kept, *weights, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    out, *rest, bias = ctx.saved_tensors
    n = len(ctx.shapes)
    xs, weights, want_xs, want_weights = rest[:n], rest[n:], ctx.wanted[:n], ctx.wanted[n:-1]
    needed = [k for k in range(n) if want_xs[k] or want_weights[k]]
    sizes = [ctx.shapes[k][2:] for k in needed] + [grad.shape[2:]] * ctx.wanted[-1]
    small = _adjoints(grad, out if ctx.relu else grad, sizes, ctx.mode, ctx.align_corners, ctx.relu, ctx.impl)
    of_xs: list[Tensor | None] = [None] * n
    of_weights: list[Tensor | None] = [None] * n
    for k, of_term in zip(needed, small, strict=False):  # the last may be the bias's
        of_xs[k] = of_term
        if weights[k].dim() == 2:
            of_xs[k], of_weight = convolution_gradients(
                of_term, xs[k] if want_weights[k] else None, ctx.shapes[k], weights[k][:, :, None, None], 1,
                want_xs[k], want_weights[k],
            )  # fmt: skip
            of_weights[k] = None if of_weight is None else of_weight.flatten(1)
    of_bias = bias_gradient(small[-1], bias) if ctx.wanted[-1] else None
    return of_xs, of_weights, of_bias, None, None, None, None, None


def _adjoints(
    grad: Tensor, value: Tensor, sizes: list[torch.Size], mode: str, align_corners: bool, relu: bool, impl: str
) -> list[Tensor]:
    """Return the masked gradient's adjoint of interpolation at each of `sizes`, those of equal sizes computed once."""
    distinct: list[torch.Size] = []
    for size in sizes:
        if size not in distinct:
            distinct.append(size)
    empty = [grad.new_empty(0)] * len(distinct)
    flags = [1] * len(distinct) + [0] * len(distinct)
    found = torch.ops.hrnet_fast.fuse_sum_backward(
        grad, value, empty, empty, [s for size in distinct for s in size], mode, align_corners, relu, flags, impl
    )
    return [found[distinct.index(size)] for size in sizes]


_forward.register_autograd(_backward, setup_context=_setup_context)
