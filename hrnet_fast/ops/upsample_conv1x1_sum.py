"""The operator ``upsample_conv1x1_sum``: act(sum_k resample_k(conv1x1(x_k)) + bias) in one launch.

One target of a fusion unit with its normalisations folded (paper, section 3.2 and Figure 3), and HRNetV2's head (Figure
4b) without the concatenation: a 1x1 convolution of concatenated maps is the sum of one per map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_tensor, check_tensors, check_text
from hrnet_fast.errors import InputError, shown
from hrnet_fast.implementations import select_implementation
from hrnet_fast.ops.common import (
    autocast,
    bias_gradient,
    check_bias,
    check_dtype,
    check_like,
    convolution_gradients,
    memory_format_of,
    target_size,
    unaliased,
)
from hrnet_fast.ops.fuse_sum import MAX_TERMS, RESAMPLE

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
    _check_options(terms, given, mode, activation)
    cast = autocast(*terms, *given, bias)
    terms = [t for t in cast[: len(terms)] if t is not None]
    matrices = _matrices(terms, cast[len(terms) : -1])
    channels = next((w.shape[0] for w in matrices if w.dim() == 2), terms[0].shape[1])
    _check_terms(terms, matrices, cast[-1], channels)
    target = target_size(NAME, terms, size, 1)
    result: Tensor = _forward(
        terms, matrices, cast[-1], list(target), mode, align_corners, activation == "relu", impl
    )  # fmt: skip
    return result


def _check_options(xs: list[Tensor], weights: list[Tensor | None], mode: str, activation: str | None) -> None:
    if not 1 <= len(xs) <= MAX_TERMS:
        raise InputError(f"{NAME}: {len(xs)} terms given; 1 to {MAX_TERMS} are accepted.")
    if len(weights) != len(xs):
        raise InputError(f"{NAME}: {len(weights)} weights for {len(xs)} terms; give one, or None, for each.")
    if mode not in ("bilinear", "nearest"):
        raise InputError(f"{NAME}: mode {mode!r}; accepted are 'bilinear' and 'nearest'.")
    if activation is not None and activation != "relu":
        raise InputError(f"{NAME}: activation {shown(activation)}; accepted are 'relu' and None.")


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


def _check_terms(xs: list[Tensor], matrices: list[Tensor], bias: Tensor | None, channels: int) -> None:
    first = xs[0]
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


def _result_format(xs: Sequence[Tensor]) -> torch.memory_format:
    """The layout of the largest term: the one most likely to be the fusion's."""
    return memory_format_of(max(xs, key=lambda x: x.shape[-2] * x.shape[-1]))


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
    layout = _result_format(xs)
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
    return torch.empty(shape, dtype=xs[0].dtype, device=xs[0].device, memory_format=_result_format(xs))


@torch.library.custom_op(f"hrnet_fast::{NAME}_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    out: Tensor,
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    shapes: Sequence[int],
    mode: str,
    align_corners: bool,
    relu: bool,
    wanted: Sequence[int],
    impl: str,
) -> list[Tensor]:
    """Return the gradients of all xs, then weights, then bias; an unwanted one is empty.

    `out` is empty without an activation, ``xs[k]`` where its shape, ``shapes[3k:3k+3]`` without N, is enough.
    """
    n = len(xs)
    value = out if relu else grad
    layout = memory_format_of(value)
    needed = [k for k in range(n) if wanted[k] or wanted[n + k]]
    small = _adjoints(grad, value, [(shapes[3 * k + 1], shapes[3 * k + 2]) for k in needed], bool(wanted[2 * n]),
                      mode, align_corners, relu, impl)  # fmt: skip
    found = [grad.new_empty(0) for _ in range(2 * n + 1)]
    for k in needed:
        channels, h, w = shapes[3 * k : 3 * k + 3]
        of_x: Tensor | None = small[h, w]
        if weights[k].dim() == 2:
            of_x, of_weight = convolution_gradients(
                small[h, w], xs[k] if wanted[n + k] else None, (grad.shape[0], channels, h, w),
                weights[k][:, :, None, None], 1, bool(wanted[k]), bool(wanted[n + k]),
            )  # fmt: skip
            if of_weight is not None and wanted[n + k]:
                found[n + k] = of_weight.flatten(1).contiguous()
        if of_x is not None and wanted[k]:
            found[k] = unaliased(of_x, layout, [grad, *found[:k]])
    if bias is not None and wanted[2 * n]:
        found[2 * n] = bias_gradient(small[grad.shape[2], grad.shape[3]], bias)
    return found


def _adjoints(
    grad: Tensor, value: Tensor, sizes: list[tuple[int, int]], full: bool, mode: str, align_corners: bool, relu: bool,
    impl: str,
) -> dict[tuple[int, int], Tensor]:  # fmt: skip
    """Return the masked gradient's adjoint at each of `sizes`, computed once, and at its own size where `full`."""
    own = [(grad.shape[2], grad.shape[3])] if full else []
    distinct = list(dict.fromkeys([*sizes, *own]))
    empty = [grad.new_empty(0)] * len(distinct)
    flags = [1] * len(distinct) + [0] * len(distinct)
    found = torch.ops.hrnet_fast.fuse_sum_backward(
        grad, value, empty, empty, [s for size in distinct for s in size], mode, align_corners, relu, flags, impl
    )
    return dict(zip(distinct, found[: len(distinct)], strict=True))


@_gradients.register_fake
def _gradients_fake(grad, out, xs, weights, bias, shapes, mode, align_corners, relu, wanted, impl):  # type: ignore[no-untyped-def]
    n = len(xs)
    found = [grad.new_empty(0) for _ in range(2 * n + 1)]
    for k in range(n):
        if wanted[k]:
            shape = (grad.shape[0], *shapes[3 * k : 3 * k + 3])
            layout = memory_format_of(out if relu else grad)
            found[k] = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        if wanted[n + k]:
            found[n + k] = grad.new_empty(weights[k].shape)
    if wanted[2 * n]:
        found[2 * n] = torch.empty_like(bias)
    return found


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    xs, weights, bias, _, ctx.mode, ctx.align_corners, ctx.relu, ctx.impl = inputs
    ctx.terms = len(xs)
    ctx.shapes = [s for x in xs for s in x.shape[1:]]
    leaves = [*xs, *weights]
    ctx.wanted = [int(t.requires_grad) for t in leaves] + [int(bias is not None and bias.requires_grad)]
    absent = output.new_empty(0)
    # A term's values are needed for its weight's gradient alone, a weight's for its term's.
    kept = [x if w.requires_grad else absent for x, w in zip(xs, weights, strict=True)]
    ctx.save_for_backward(output if ctx.relu else absent, *kept, *weights, bias)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    out, *rest = ctx.saved_tensors
    n = ctx.terms
    found = torch.ops.hrnet_fast.upsample_conv1x1_sum_backward(
        grad, out, rest[:n], rest[n : 2 * n], rest[2 * n], ctx.shapes, ctx.mode, ctx.align_corners, ctx.relu,
        ctx.wanted, ctx.impl,
    )  # fmt: skip
    given = [g if w else None for g, w in zip(found, ctx.wanted, strict=True)]
    return given[:n], given[n : 2 * n], given[2 * n], None, None, None, None, None


_forward.register_autograd(_backward, setup_context=_setup_context)
