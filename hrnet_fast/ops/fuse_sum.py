"""The operator ``fuse_sum``: act(sum_k resample_k(scale_k * x_k + shift_k)), forward and backward in one pass each.

The last step of a fusion unit (paper, section 3.2 and Figure 3): the identity, the strided and the upsampled terms of
one target, with their normalisations' affines, summed and activated without a map written in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_tensors, check_text
from hrnet_fast.errors import InputError
from hrnet_fast.implementations import request, select_implementation
from hrnet_fast.ops.common import (
    check_dtype,
    check_like,
    check_sum,
    format_of_largest,
    memory_format_of,
    target_size,
    unaliased,
)
from hrnet_fast.ops.compiled import compiled_operator

# The values of hrnet_fast::Resample in kernels/cuda/resample.h, by (mode, align_corners).
RESAMPLE = {("nearest", False): 0, ("nearest", True): 0, ("bilinear", False): 1, ("bilinear", True): 2}


def fuse_sum(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor | None] | None = None,
    shifts: Sequence[Tensor | None] | None = None,
    *,
    size: tuple[int, int] | None = None,
    mode: str = "bilinear",
    align_corners: bool = False,
    activation: str | None = "relu",
    impl: str = "auto",
) -> Tensor:
    """Return act(sum_k resample_k(scale_k * x_k + shift_k)), summed in the order of the terms.

    Args:
        xs: one to eight terms [N, C, h_k, w_k] of one floating dtype and device; channels-last or contiguous, and
            slices of channels of such maps.
        scales, shifts: per-channel affine [C] of each term, or None for the identity; both or neither of a term.
        size: (H, W) of the result; the first term's by default. Terms of another size are interpolated to it, at any
            ratio, as :func:`torch.nn.functional.interpolate` with ``size=`` does.
        mode: ``"bilinear"`` or ``"nearest"``.
        align_corners: of bilinear interpolation.
        activation: ``"relu"`` or None.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"`` (no float64).

    Returns:
        [N, C, H, W] in the terms' dtype, laid out as the largest term. Fused implementations compute half types in
        float32 and round once. Differentiable once in every tensor.

    Raises:
        InputError: terms that cannot be summed.
        ImplementationError: a named implementation that cannot run here.
    """
    xs = check_tensors("fuse_sum", "xs", xs)
    check_bool("fuse_sum", align_corners=align_corners)
    check_text("fuse_sum", mode=mode, impl=impl)
    size = _checked_size(xs, size, mode, activation)
    scales, shifts = _affines(xs, scales, shifts)
    relu = activation == "relu"
    # A symbolic size must not become a number, as the C++ call would make it.
    elsewhere = _is_interpolation(xs, scales, relu) or not all(type(s) is int for s in size)
    compiled = None if elsewhere else compiled_operator("fuse_sum", impl, xs[0])
    if compiled is not None:
        out = compiled(xs, scales, shifts, size, RESAMPLE[mode, align_corners], relu)
        if out is not None:
            return out
    # Operators take lists of tensors only.
    absent = xs[0].new_empty(0)
    scale_list, shift_list = ([absent if t is None else t for t in ts] for ts in (scales, shifts))
    result: Tensor = _fuse_sum(xs, scale_list, shift_list, list(size), mode, align_corners, relu, impl)
    return result


def _is_interpolation(xs: Sequence[Tensor], scales: Sequence[Tensor | None], relu: bool) -> bool:
    """Whether there is no pass over memory to save: the library's interpolation is faster on a CPU."""
    return len(xs) == 1 and not relu and (scales[0] is None or not scales[0].numel())


def _checked_size(xs: list[Tensor], size: tuple[int, int] | None, mode: str, activation: str | None) -> tuple[int, int]:
    check_sum("fuse_sum", xs, mode, activation)
    first = xs[0]
    for k, x in enumerate(xs):
        if x.dim() != 4 or x.shape[:2] != first.shape[:2]:
            raise InputError(
                f"fuse_sum: term {k} has shape {tuple(x.shape)}; all terms are [N, C, h, w] with the N and C of the "
                f"first, {tuple(first.shape)}."
            )
        check_like("fuse_sum", f"term {k}", x, first)
    check_dtype("fuse_sum", first)
    return target_size("fuse_sum", xs, size, 0)


def _affines(
    xs: list[Tensor], scales: Sequence[Tensor | None] | None, shifts: Sequence[Tensor | None] | None
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return both as lists."""
    scales = [None] * len(xs) if scales is None else check_tensors("fuse_sum", "scales", scales, optional=True)
    shifts = [None] * len(xs) if shifts is None else check_tensors("fuse_sum", "shifts", shifts, optional=True)
    if len(scales) != len(xs) or len(shifts) != len(xs):
        raise InputError(f"fuse_sum: {len(scales)} scales and {len(shifts)} shifts for {len(xs)} terms; give one each.")
    channels = xs[0].shape[1]
    for k, (scale, shift) in enumerate(zip(scales, shifts, strict=True)):
        if (scale is None) != (shift is None):
            raise InputError(f"fuse_sum: term {k} has a scale or a shift alone; give both or neither.")
        if scale is not None and shift is not None and not scale.shape == shift.shape == (channels,):
            raise InputError(
                f"fuse_sum: term {k} has scale {tuple(scale.shape)} and shift {tuple(shift.shape)}; both must be "
                f"[{channels}]."
            )
        for affine in (scale, shift):
            if affine is not None and (affine.device != xs[0].device or not affine.is_floating_point()):
                raise InputError(
                    f"fuse_sum: term {k} has an affine of {affine.dtype} on {affine.device}; it must be floating, on "
                    f"the terms' {xs[0].device}."
                )
    return scales, shifts


def fuse_sum_forward(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    shifts: Sequence[Tensor],
    size: Sequence[int],
    mode: str,
    align_corners: bool,
    relu: bool,
    impl: str,
) -> Tensor:
    """Compute :func:`fuse_sum` without checks and autograd: for callers that bring their own, or need none.

    Absent scales and shifts are empty tensors. The result is a new tensor in the layout of the largest term.
    """
    # Selected here and not by the caller: a compiled graph does not trace the selection.
    implementation = select_implementation("fuse_sum", impl, xs[0])
    if _is_interpolation(xs, scales, relu) and implementation == "cpu" and request(impl).name == "auto":
        implementation = "reference"
    code, layout = RESAMPLE[mode, align_corners], format_of_largest(xs)
    if implementation in ("cpu", "cuda"):
        compiled = getattr(torch.ops.hrnet_fast, f"fuse_sum_{implementation}")
        out: Tensor = compiled(xs, scales, shifts, size, code, relu)
        return out.contiguous(memory_format=layout)
    if implementation == "triton":
        from hrnet_fast.kernels.triton.fuse_sum import forward

        return forward(xs, scales, shifts, (size[0], size[1]), code, relu, layout is torch.channels_last)
    from hrnet_fast.reference.fuse_sum import fuse_sum as reference

    out = reference(xs, _or_none(scales), _or_none(shifts), (size[0], size[1]), mode, align_corners, relu)
    return unaliased(out, layout, xs)


def _or_none(tensors: Sequence[Tensor]) -> list[Tensor | None]:
    return [t if t.numel() else None for t in tensors]


_fuse_sum = torch.library.custom_op("hrnet_fast::fuse_sum", fuse_sum_forward, mutates_args=())


@_fuse_sum.register_fake
def _fuse_sum_fake(xs, scales, shifts, size, mode, align_corners, relu, impl):  # type: ignore[no-untyped-def]
    shape = (xs[0].shape[0], xs[0].shape[1], size[0], size[1])
    return torch.empty(shape, dtype=xs[0].dtype, device=xs[0].device, memory_format=format_of_largest(xs))


def fuse_sum_backward(
    grad: Tensor,
    out: Tensor,
    xs: Sequence[Tensor],
    scales: Sequence[Tensor],
    sizes: Sequence[int],
    mode: str,
    align_corners: bool,
    relu: bool,
    wanted: Sequence[int],
    impl: str,
) -> list[Tensor]:
    """Return the gradients of all xs, then scales, then shifts; an unwanted one is empty.

    Args:
        grad, out: the result's gradient and the result (without ReLU, any map of its shape and layout).
        xs: the terms; empty tensors where only the size is needed: where no affine's gradient is wanted.
        sizes: (h, w) of every term, one after another.
        wanted: flags of xs, then of affines.
    """
    implementation = select_implementation("fuse_sum", impl, grad)
    code, n, layout = RESAMPLE[mode, align_corners], len(xs), memory_format_of(out)
    if implementation in ("cpu", "cuda"):
        compiled = getattr(torch.ops.hrnet_fast, f"fuse_sum_backward_{implementation}")
        results: list[Tensor] = compiled(grad, out, xs, scales, sizes, code, relu, wanted)
        return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in results]
    if implementation == "triton":
        from hrnet_fast.kernels.triton.fuse_sum import backward

        terms = [
            backward(grad, out, xs[k], scales[k], (sizes[2 * k], sizes[2 * k + 1]), code, relu,
                     layout is torch.channels_last, bool(wanted[k]), bool(wanted[n + k]))
            for k in range(n)
        ]  # fmt: skip
        return [term[part] for part in range(3) for term in terms]
    masked = torch.ops.aten.threshold_backward(grad, out, 0) if relu else grad
    found = [grad.new_empty(0) for _ in range(3 * n)]
    for k in range(n):
        small = _adjoint(masked, out, (sizes[2 * k], sizes[2 * k + 1]), mode, align_corners)
        scale = scales[k]
        if wanted[k]:
            of_x = small * scale.to(small.dtype).view(1, -1, 1, 1) if scale.numel() else small
            found[k] = unaliased(of_x, layout, [grad, *found[:k]])
        if wanted[n + k]:
            found[n + k] = (small * xs[k]).sum((0, 2, 3)).to(scale.dtype)
            found[2 * n + k] = small.sum((0, 2, 3)).to(scale.dtype)
    return found


_fuse_sum_backward = torch.library.custom_op("hrnet_fast::fuse_sum_backward", fuse_sum_backward, mutates_args=())


def _adjoint(grad: Tensor, out: Tensor, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
    """Return the adjoint of interpolating [N, C, *size] to the size of `out`, applied to `grad`."""
    full = (out.shape[-2], out.shape[-1])
    if full == size:
        return grad
    shape = [out.shape[0], out.shape[1], *size]
    aten = torch.ops.aten
    small: Tensor = (
        aten.upsample_nearest2d_backward(grad, full, shape)
        if mode == "nearest"
        else aten.upsample_bilinear2d_backward(grad, full, shape, align_corners)
    )
    return small


@_fuse_sum_backward.register_fake
def _fuse_sum_backward_fake(grad, out, xs, scales, sizes, mode, align_corners, relu, wanted, impl):  # type: ignore[no-untyped-def]
    n = len(xs)
    found = [grad.new_empty(0) for _ in range(3 * n)]
    for k in range(n):
        if wanted[k]:
            shape = (out.shape[0], out.shape[1], sizes[2 * k], sizes[2 * k + 1])
            found[k] = torch.empty(shape, dtype=out.dtype, device=out.device, memory_format=memory_format_of(out))
        if wanted[n + k]:
            found[n + k], found[2 * n + k] = torch.empty_like(scales[k]), torch.empty_like(scales[k])
    return found


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    xs, scales, shifts, _, ctx.mode, ctx.align_corners, ctx.relu, ctx.impl = inputs
    ctx.sizes = [s for x in xs for s in x.shape[-2:]]
    # The result is needed where ReLU was, and a term's values for its scale's gradient alone.
    absent = output.new_empty(0)
    ctx.layout = memory_format_of(output)
    affine = [bool(s.numel()) and (s.requires_grad or b.requires_grad) for s, b in zip(scales, shifts, strict=True)]
    ctx.wanted = [int(x.requires_grad) for x in xs] + [int(a) for a in affine]
    kept = [x if a else absent for x, a in zip(xs, affine, strict=True)]
    ctx.terms = len(xs)
    ctx.save_for_backward(output if ctx.relu else absent, *kept, *scales)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    out, *rest = ctx.saved_tensors
    n = ctx.terms
    if not ctx.relu:  # only its shape and layout are read
        out = grad = grad.contiguous(memory_format=ctx.layout)
    found = torch.ops.hrnet_fast.fuse_sum_backward(
        grad, out, rest[:n], rest[n:], ctx.sizes, ctx.mode, ctx.align_corners, ctx.relu, ctx.wanted, ctx.impl
    )
    given = [g if w else None for g, w in zip(found, ctx.wanted + ctx.wanted[n:], strict=True)]
    return given[:n], given[n : 2 * n], given[2 * n :], None, None, None, None, None


_fuse_sum.register_autograd(_backward, setup_context=_setup_context)
