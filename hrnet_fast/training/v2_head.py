"""HRNetV2's head without its concatenation: 1x1 convolutions at every resolution, then upsampling and one sum.

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

from hrnet_fast.implementations import OperatorImplementations
from hrnet_fast.ops.primitives import fuse_sum_backward, fuse_sum_forward, load_bn_act
from hrnet_fast.training import compiled
from hrnet_fast.training.batch_norm import count_batches, normalise, synchronised
from hrnet_fast.training.conv_norm import (
    PER_STEP,
    ConvNorm,
    NoneOr,
    SavedConv,
    convolve,
    convolve_backward,
    norm_gradient,
)
from hrnet_fast.training.matching import read_conv_norm
from hrnet_fast.training.memory_format import in_compute_format, in_input_format
from hrnet_fast.training.recompute import recomputation_of


class V2HeadCall(NamedTuple):
    """1x1 convolution over all maps, normalisation, ReLU, and the classifier (a convolution with bias)."""

    mix: ConvNorm
    classifier: ConvNorm
    align_corners: bool
    operators: OperatorImplementations


class V2HeadLayers:
    """The modules of a supported head, and its compiled form where there is one.

    Args:
        layers: convolution, normalisation, ReLU and classifier.
        align_corners: of the upsampling.
    """

    def __init__(self, layers: nn.Module, align_corners: bool) -> None:
        conv, norm, _, classifier = layers.children()
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(classifier, nn.Conv2d)
        self._conv, self._norm, self._classifier, self._align_corners = conv, norm, classifier, align_corners
        self.synchronised = synchronised([norm])
        self.compiled = compiled.compile_v2_head((conv, norm), classifier, align_corners)

    def has_dtype_of(self, x: Tensor) -> bool:
        """Whether both weights have the dtype of `x`."""
        return self._conv.weight.dtype == self._classifier.weight.dtype == x.dtype

    def read(self, operators: OperatorImplementations) -> V2HeadCall:
        """Describe them as they stand at a call."""
        mix, last = read_conv_norm(self._conv, self._norm), self._classifier
        assert not isinstance(last.padding, str)
        classifier = mix._replace(
            weight=last.weight, bias=last.bias, stride=last.stride, padding=last.padding, dilation=last.dilation,
            groups=last.groups,
        )  # fmt: skip
        return V2HeadCall(mix, classifier, self._align_corners, operators)


def run_v2_head(layers: V2HeadLayers, xs: Sequence[Tensor], operators: OperatorImplementations) -> Tensor:
    """Return the classifier's [N, K, H, W] from maps [N, C_k, h_k, w_k], highest resolution first.

    The maps have no :mod:`~hrnet_fast.training.unsupported` reason. Differentiable once, in every map and parameter.
    """
    if layers.compiled is not None and compiled.has_compiled_passes(operators, layers.synchronised):
        return compiled.run_v2_head(layers.compiled.read(), xs)
    call = layers.read(operators)
    parameters = [*call.mix.parameters(), call.classifier.weight, call.classifier.bias]
    count_batches([call.mix.norm])
    tensors = [t for t in (*xs, *parameters) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        recomputations = tuple(recomputation_of(x) for x in xs)
        found: Tensor = _V2HeadFunction.apply(call, len(xs), recomputations, *xs, *parameters)  # type: ignore[no-untyped-call]
        return found
    return in_input_format(_v2_head_forward(call, [in_compute_format(x) for x in xs])[0], xs[0])


def _v2_head_forward(call: V2HeadCall, xs: Sequence[Tensor]) -> tuple[Tensor, SavedConv]:
    """Return the output, and for backward the sum of the convolved maps with its normalisation."""
    primitives = load_bn_act(call.operators.bn_act)
    y = _convolved_sum(call, xs)
    mixed = SavedConv(y, *normalise(primitives, [y], [call.mix.norm])[0])
    a = primitives.bn_act(y, mixed.affine, None, True)
    return convolve(a, call.classifier.weight, call.classifier.bias, call.classifier), mixed


def _convolved_sum(call: V2HeadCall, xs: Sequence[Tensor]) -> Tensor:
    maps, start = [], 0
    for k, x in enumerate(xs):
        own = call.mix.weight[:, start : start + x.shape[1]]
        start += x.shape[1]
        maps.append(convolve(x, own, call.mix.bias if k == 0 else None, call.mix))
    absent = [maps[0].new_empty(0)] * len(maps)
    size, implementation = maps[0].shape[-2:], call.operators.fuse_sum
    return fuse_sum_forward(maps, absent, absent, size, "bilinear", call.align_corners, False, implementation)


class _V2HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: V2HeadCall, n: int, recomputations: tuple[Any, ...], *tensors: NoneOr) -> Tensor:
        given: list[Tensor] = list(tensors[:n])  # type: ignore[arg-type]
        ctx.call, ctx.recomputations = call, recomputations
        xs = [in_compute_format(x) for x in given]
        out, saved = _v2_head_forward(call, xs)
        ctx.count = saved.count
        kept = [x for x, again in zip(xs, recomputations, strict=True) if again is None]
        ctx.save_for_backward(saved.y, saved.affine, *kept, *tensors[n:])
        return in_input_format(out, given[0])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        call: V2HeadCall = ctx.call
        primitives = load_bn_act(call.operators.bn_act)
        y, affine, *rest = ctx.saved_tensors
        left = iter(rest)
        xs: list[Tensor] = [
            next(left) if again is None else in_compute_format(again.tensor()) for again in ctx.recomputations
        ]
        weight, bias, scale, shift, last, last_bias = left
        want_x, want = ctx.needs_input_grad[3 : 3 + len(xs)], ctx.needs_input_grad[3 + len(xs) :]
        a = primitives.bn_act(y, affine, None, True)
        da, dlast, dlast_bias = convolve_backward(
            grad, a, last, call.classifier, (True, want[PER_STEP], want[PER_STEP + 1] and last_bias is not None)
        )
        del a
        assert da is not None
        sums, _ = primitives.backward_sums(da, None, y, affine, None, True, False)
        dy = SavedConv(y, affine, ctx.count).input_gradient(primitives, da, sums, call.mix.norm, True)
        sizes = [s for x in xs for s in x.shape[-2:]]
        empty = [y.new_empty(0)] * len(xs)
        resampled = [int(k > 0) for k in range(len(xs))] + [0] * len(xs)
        small = fuse_sum_backward(
            dy, y, empty, empty, sizes, "bilinear", call.align_corners, False, resampled, call.operators.fuse_sum
        )
        small[0] = dy  # the first map has the sum's size
        dxs, dws, db, start = list[NoneOr](), list[NoneOr](), None, 0
        for k, x in enumerate(xs):
            own = weight[:, start : start + x.shape[1]]
            start += x.shape[1]
            asked = (want_x[k], want[0], k == 0 and want[1] and bias is not None)
            dx, dw, first = convolve_backward(small[k], x, own, call.mix, asked)
            db = first if k == 0 else db
            dxs.append(dx)
            dws.append(dw)
        dweight = torch.cat([dw for dw in dws if dw is not None], 1) if want[0] else None
        norm = norm_gradient(sums[1], scale, want[2]), norm_gradient(sums[0], shift, want[3])
        return None, None, None, *dxs, dweight, db, *norm, dlast, dlast_bias
