"""HRNetV2's head without its concatenation: convolve every resolution where it is, upsample, sum.

Interpolation weights sum to one, so a 1x1 convolution over upsampled and concatenated maps equals the sum of upsampled
1x1 convolutions (paper, section 3.3 and Figure 4 b, in the low-resolution order). Three of four maps are then
convolved at a quarter of the pixels or less, and neither the concatenation nor the activation is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hrnet_fast.implementations import implementation_within_network
from hrnet_fast.ops.bn_act_primitives import BnActPrimitives, bn_act_primitives
from hrnet_fast.ops.fuse_sum import compute, gradients
from hrnet_fast.training.batch_norm import Count, count_batches, input_gradient, normalise
from hrnet_fast.training.matching import (
    autocast_dtype,
    call_unsupported_reason,
    conv_norm_relu_unsupported_reason,
    conv_unsupported_reason,
    hooked,
    read_conv_norm_relu,
)
from hrnet_fast.training.memory_format import in_compute_format, in_input_format
from hrnet_fast.training.recompute import recomputation_of
from hrnet_fast.training.residual_chain import PER_STEP, ConvNorm, NoneOr, convolve, convolve_backward, norm_gradient


class V2HeadCall(NamedTuple):
    """1x1 convolution over all maps, normalisation, ReLU, and the classifier (a convolution with bias)."""

    mix: ConvNorm
    classifier: ConvNorm
    align_corners: bool
    impl: str

    @property
    def fuse_impl(self) -> str:
        return implementation_within_network("fuse_sum", self.impl)


def v2_head_unsupported_reason(layers: nn.Module, xs: Sequence[Tensor], impl: str) -> str | None:
    """Say why a head's layers take the plain path on these maps, or None."""
    parts = list(layers.children())
    if len(parts) != 4:
        return "it is not convolution, normalisation, ReLU and convolution"
    reason = (
        next((r for x in xs if (r := call_unsupported_reason(x, impl))), None)
        or conv_norm_relu_unsupported_reason(*parts[:3])
        or conv_unsupported_reason(parts[3])
    )
    if reason is None and tuple(parts[0].kernel_size) != (1, 1):  # type: ignore[arg-type]
        reason = "its first convolution is not 1x1"
    dtype = autocast_dtype(xs[0]) if reason is None else None
    if reason is None and any(x.dtype != (dtype or parts[0].weight.dtype) for x in xs):  # type: ignore[union-attr]
        reason = "maps and weights differ in dtype"
    return reason or hooked([layers, *parts])


def run_v2_head(layers: nn.Module, xs: Sequence[Tensor], align_corners: bool, impl: str) -> Tensor:
    """Return the classifier's [N, K, H, W] from maps [N, C_k, h_k, w_k], highest resolution first."""
    conv, norm, _, last = layers.children()
    assert isinstance(last, nn.Conv2d)
    mix = read_conv_norm_relu(conv, norm).steps[0]
    assert not isinstance(last.padding, str)
    classifier = mix._replace(
        weight=last.weight, bias=last.bias, stride=last.stride, padding=last.padding, dilation=last.dilation,
        groups=last.groups,
    )  # fmt: skip
    parameters = [*mix.parameters(), last.weight, last.bias]
    count_batches([mix.norm])
    mixing = V2HeadCall(mix, classifier, align_corners, impl)
    tensors = [t for t in (*xs, *parameters) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        recipes = tuple(recomputation_of(x) for x in xs)
        found: Tensor = _V2HeadFunction.apply(mixing, len(xs), recipes, *xs, *parameters)  # type: ignore[no-untyped-call]
        return found
    done = _execute(
        mixing,
        bn_act_primitives(implementation_within_network("bn_act", impl), xs[0]),
        [in_compute_format(x) for x in xs],
    )
    return in_input_format(done[0], xs[0])


def _execute(mixing: V2HeadCall, p: BnActPrimitives, xs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Count]:
    """Return the output, and what backward needs: the mixed maps, their normalisation and count."""
    y = _convolved_and_added(mixing, xs)
    (affine, count), *_ = normalise(p, [y], [mixing.mix.norm])
    a = p.bn_act(y, affine, None, True)
    return convolve(a, mixing.classifier.weight, mixing.classifier.bias, mixing.classifier), y, affine, count


def _convolved_and_added(mixing: V2HeadCall, xs: Sequence[Tensor]) -> Tensor:
    maps, start = [], 0
    for k, x in enumerate(xs):
        own = mixing.mix.weight[:, start : start + x.shape[1]]
        start += x.shape[1]
        maps.append(convolve(x, own, mixing.mix.bias if k == 0 else None, mixing.mix))
    absent = [y.new_empty(0) for y in maps]
    size = list(maps[0].shape[-2:])
    return compute(maps, absent, absent, size, "bilinear", mixing.align_corners, False, mixing.fuse_impl)


class _V2HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixing: V2HeadCall, n: int, recipes: tuple[Any, ...], *tensors: NoneOr) -> Tensor:
        xs: list[Tensor] = list(tensors[:n])  # type: ignore[arg-type]
        ctx.mixing, ctx.recipes = mixing, recipes
        ctx.pieces = bn_act_primitives(implementation_within_network("bn_act", mixing.impl), xs[0])
        given, xs = xs[0], [in_compute_format(x) for x in xs]
        out, y, affine, ctx.count = _execute(mixing, ctx.pieces, xs)
        kept = [x for x, recipe in zip(xs, recipes, strict=True) if recipe is None]
        ctx.save_for_backward(y, affine, *kept, *tensors[n:])
        return in_input_format(out, given)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        mixing, p = ctx.mixing, ctx.pieces
        y, affine, *rest = ctx.saved_tensors
        left = iter(rest)
        xs: list[Tensor] = [
            next(left) if recipe is None else in_compute_format(recipe.tensor()) for recipe in ctx.recipes
        ]
        weight, bias, scale, shift, last, last_bias = left
        want_x, want = ctx.needs_input_grad[3 : 3 + len(xs)], ctx.needs_input_grad[3 + len(xs) :]
        a = p.bn_act(y, affine, None, True)
        da, dlast, dlast_bias = convolve_backward(
            grad, a, last, mixing.classifier, (True, want[PER_STEP], want[PER_STEP + 1] and last_bias is not None)
        )
        del a
        assert da is not None
        sums, _ = p.backward_sums(da, None, y, affine, None, True, False)
        dy = input_gradient(p, da, y, affine, sums, ctx.count, mixing.mix.norm, True)
        sizes = [s for x in xs for s in x.shape[-2:]]
        empty = [y.new_empty(0)] * len(xs)
        small = gradients(
            dy, y, empty, empty, sizes, "bilinear", mixing.align_corners, False, [1] * len(xs) + [0] * len(xs),
            mixing.fuse_impl,
        )  # fmt: skip
        dxs, dws, db, start = list[NoneOr](), list[NoneOr](), None, 0
        for k, x in enumerate(xs):
            own = weight[:, start : start + x.shape[1]]
            start += x.shape[1]
            asked = (want_x[k], want[0], k == 0 and want[1] and bias is not None)
            dx, dw, first = convolve_backward(small[k], x, own, mixing.mix, asked)
            db = first if k == 0 else db
            dxs.append(dx)
            dws.append(dw)
        dweight = torch.cat([dw for dw in dws if dw is not None], 1) if want[0] else None
        norm = norm_gradient(sums[1], scale, want[2]), norm_gradient(sums[0], shift, want[3])
        return None, None, None, *dxs, dweight, db, *norm, dlast, dlast_bias
