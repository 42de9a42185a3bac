"""Chains of residual units and of convolutions with normalisation, with a backward that keeps half as much.

Kept for backward are each convolution's output and its [4, C] of normalisation; activations are computed again from
them by elementwise passes, and no convolution runs twice ("Lean units" in docs/architecture.md). With ``memory="min"``
only the chain's input is kept, and its convolutions do run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrnet_fast.implementations import implementation_within_network
from hrnet_fast.ops.bn_act_primitives import BnActPrimitives, bn_act_primitives
from hrnet_fast.ops.common import wrong_in_bfloat16
from hrnet_fast.training.batch_norm import Count, NormCall, count_batches, input_gradient, normalise
from hrnet_fast.training.memory_format import in_compute_format, in_input_format
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of

NoneOr = Tensor | None
PER_STEP = 4  # parameters: the convolution's weight and bias, the normalisation's scale and shift
LONG = 64  # channels from which on a window may be added by blocks of channels


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


class Unit(NamedTuple):
    """Steps with ReLU between, a shortcut, and a last ReLU.

    ``shortcut`` is True for the identity, a step for a projection, or None: a plain row of convolutions.
    """

    steps: tuple[ConvNorm, ...]
    shortcut: ConvNorm | bool | None

    def all_steps(self) -> tuple[ConvNorm, ...]:
        return (*self.steps, self.shortcut) if isinstance(self.shortcut, ConvNorm) else self.steps


@dataclass(frozen=True)
class Chain:
    """Units in a row, and how they execute.

    Attributes:
        units: executed one after another.
        impl: implementation of the elementwise passes.
        minimal: keep the input only.
        dtype: what the convolutions compute in under autocast, or None.
        blocks: add long windows by blocks of channels: see :mod:`hrnet_fast.training.memory_format`.
    """

    units: tuple[Unit, ...]
    impl: str
    minimal: bool
    dtype: torch.dtype | None
    blocks: bool = False

    def steps(self) -> list[ConvNorm]:
        return [step for unit in self.units for step in unit.all_steps()]


def run_chain(chain: Chain, x: Tensor) -> Tensor:
    """Return the chain's output, [N, C, H, W]; differentiable once, in the input and every parameter."""
    steps = chain.steps()
    parameters = [p for s in steps for p in s.parameters()]
    count_batches([s.norm for s in steps])
    if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters)):
        out: Tensor = _ChainFunction.apply(chain, recomputation_of(x), x, *parameters)  # type: ignore[no-untyped-call]
        attach(out)
        return out
    return in_input_format(
        _execute(
            chain,
            bn_act_primitives(implementation_within_network("bn_act", chain.impl), x),
            _input(chain, x),
            None,
            None,
        ),
        x,
    )


def _input(chain: Chain, x: Tensor) -> Tensor:
    """A chain's input as its convolutions take it."""
    return in_compute_format(x if chain.dtype is None else x.to(chain.dtype))


def convolve(x: Tensor, weight: Tensor, bias: NoneOr, step: ConvNorm) -> Tensor:
    if wrong_in_bfloat16(x, weight.shape[-1], step.stride[-1], step.padding[-1], step.dilation[-1]):
        return convolve(x.float(), weight.float(), bias, step).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    # Not by torch.ops, whose way to the same operator takes twice the time of small convolutions' preparation.
    return torch.convolution(
        x, _cast(weight, x.dtype), bias, step.stride, step.padding, step.dilation, False, (0, 0), step.groups
    )


def _convolve_by_blocks(x: Tensor, step: ConvNorm) -> Tensor:
    """The step's convolution as a sum over at most eight blocks of 16 or more input channels."""
    blocks = min(8, x.shape[1] // 16)
    parts = zip(x.chunk(blocks, 1), step.weight.chunk(blocks, 1), strict=True)
    result = convolve(*next(parts), step.bias, step)
    for part, weight in parts:
        result.add_(convolve(part, weight, None, step))
    return result


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, without a call where it would do nothing: there are thousands in a step."""
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


class _SavedConv(NamedTuple):
    """What one convolution leaves: its output, its normalisation, and the values per channel behind that."""

    y: Tensor
    affine: Tensor
    count: Count  # type: ignore[assignment]


def _step(
    p: BnActPrimitives, x: Tensor, step: ConvNorm, blocks: bool, known: tuple[Tensor, Count] | None
) -> _SavedConv:
    long = x.shape[1] >= LONG and step.weight.shape[2:].numel() > 1 and step.groups == 1
    y = _convolve_by_blocks(x, step) if blocks and long else convolve(x, step.weight, step.bias, step)
    affine, count = known or normalise(p, [y], [step.norm])[0]
    return _SavedConv(y, affine, count)


def _execute(
    chain: Chain,
    p: BnActPrimitives,
    x: Tensor,
    keep: list[_SavedConv] | None,
    known: Iterator[tuple[Tensor, Count]] | None,
) -> Tensor:
    """Run the chain. `keep` gathers what backward needs; `known` gives normalisations that an earlier run found."""
    for unit in chain.units:
        # Not in basic units: they hold most of a network's multiply-adds and, behind stem and first stage, little of
        # its error.
        blocks = chain.blocks and len(unit.steps) != 2
        kept, a = list[_SavedConv](), x
        for step in unit.steps:
            if kept:
                a = p.bn_act(kept[-1].y, kept[-1].affine, None, True)
            kept.append(_step(p, a, step, blocks, next(known) if known else None))
        if isinstance(unit.shortcut, ConvNorm):
            kept.append(_step(p, x, unit.shortcut, blocks, next(known) if known else None))
        x = _finish(p, unit, kept, x)
        if keep is not None:
            keep += kept
    return x


def _finish(p: BnActPrimitives, unit: Unit, kept: Sequence[_SavedConv], x: Tensor) -> Tensor:
    """Return a unit's output from its convolutions' and its input."""
    last = kept[len(unit.steps) - 1]
    if isinstance(unit.shortcut, ConvNorm):
        return p.bn_act(last.y, last.affine, kept[-1].y, True, kept[-1].affine)
    return p.bn_act(last.y, last.affine, x if unit.shortcut else None, True)


class _ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: Chain, recipe: Recomputation | None, x: Tensor, *parameters: NoneOr) -> Tensor:
        ctx.chain, ctx.recipe, ctx.given_dtype = chain, recipe, x.dtype
        ctx.pieces = bn_act_primitives(implementation_within_network("bn_act", chain.impl), x)
        ctx.again = _again
        ctx.cache = None
        ctx.device_type = x.device.type
        given, x = x, _input(chain, x)
        keep: list[_SavedConv] = []
        out = _execute(chain, ctx.pieces, x, keep, None)
        ctx.counts = [k.count for k in keep]
        ys = [] if chain.minimal else [k.y for k in keep]
        ctx.save_for_backward(*([] if recipe else [x]), *[k.affine for k in keep], *ys, *parameters)
        return in_input_format(out, given)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        kept, activations, parameters = _recomputed(ctx)
        ctx.cache = None
        found: list[tuple[NoneOr, ...]] = []
        want = ctx.needs_input_grad[3:]
        dx: NoneOr = grad
        addend: NoneOr = None
        end = len(kept)
        for k in reversed(range(len(ctx.chain.units))):
            unit = ctx.chain.units[k]
            begin = end - len(unit.all_steps())
            out = activations.pop()
            assert dx is not None
            own = slice(PER_STEP * begin, PER_STEP * end)
            want_x = k > 0 or ctx.needs_input_grad[2]
            dx, addend, grads = _unit_backward(
                ctx.pieces, unit, kept[begin:end], activations[-1], out, dx, addend, parameters[own], want[own], want_x
            )
            del kept[begin:end], out
            found = grads + found
            end = begin
        if dx is not None and addend is not None:
            dx = dx + addend
        dx = None if dx is None or not ctx.needs_input_grad[2] else dx.to(ctx.given_dtype)
        return None, None, dx, *[g for step in found for g in step]


def _again(ctx: Any, _: int) -> Tensor:
    """The node's output, computed anew; backward of the node then finds it."""
    found: Tensor = _recomputed(ctx)[1][-1]
    return found


_Found = tuple[list[_SavedConv], list[Tensor], list[NoneOr]]


def _recomputed(ctx: Any) -> _Found:
    """Return what every convolution left, the units' inputs followed by the output, and the parameters.

    What a consumer's backward asked for serves the node's own within the same pass. It does not outlive that:
    parameters may move before the next. Within one pass, ``torch.utils.checkpoint`` lets tensors be fetched only once.
    """
    task = torch._C._current_graph_task_id()
    if ctx.cache is not None and ctx.cache[0] == task:
        cached: _Found = ctx.cache[1]
        return cached
    # An autocast around backward would have convolutions that run again compute in another precision.
    with torch.autocast(ctx.device_type, enabled=False):
        found = _found_again(ctx)
    ctx.cache = (task, found)
    return found


def _found_again(ctx: Any) -> _Found:
    chain, p = ctx.chain, ctx.pieces
    saved = list(ctx.saved_tensors)
    x = _input(chain, ctx.recipe.tensor()) if ctx.recipe is not None else saved.pop(0)
    n = len(ctx.counts)
    known = list(zip(saved[:n], ctx.counts, strict=True))
    activations = [x]
    kept: list[_SavedConv] = []
    if chain.minimal:
        left = iter(known)
        for unit in chain.units:
            x = _execute(replace(chain, units=(unit,), dtype=None), p, x, kept, left)
            activations.append(x)
    else:
        kept = [_SavedConv(y, affine, count) for y, (affine, count) in zip(saved[n : 2 * n], known, strict=True)]
        start = 0
        for unit in chain.units:
            end = start + len(unit.all_steps())
            x = _finish(p, unit, kept[start:end], x)
            activations.append(x)
            start = end
    return kept, activations, saved[-PER_STEP * n :]


def _unit_backward(
    p: BnActPrimitives,
    unit: Unit,
    kept: list[_SavedConv],
    x: Tensor,
    out: Tensor,
    grad: Tensor,
    addend: NoneOr,
    parameters: Sequence[NoneOr],
    want: Sequence[bool],
    want_x: bool,
) -> tuple[NoneOr, NoneOr, list[tuple[NoneOr, ...]]]:
    """Return the gradient of a unit's input in two parts, to be added, and those of every step's parameters.

    Args:
        kept: what its convolutions left.
        x, out: its input and output.
        grad, addend: the gradient of its output in two parts.
        parameters, want: four of each step, and whether their gradients are wanted.
    """
    grads: list[tuple[NoneOr, ...]] = [()] * len(kept)
    residual = bool(unit.shortcut)
    dx: NoneOr = None
    g: Tensor = grad
    for j in reversed(range(len(unit.steps))):
        ends = j == len(unit.steps) - 1
        own = kept[j]
        sums, masked = p.backward_sums(
            g, addend if ends else None, own.y, own.affine, out if ends and residual else None, True, ends and
            (residual or addend is not None),
        )  # fmt: skip
        recompute = masked is None  # else the mask is in the gradient already
        g = g if masked is None else masked
        if ends:
            grad = g
        dy = _input_gradient(p, g, own, sums, unit.steps[j], recompute)
        a = x if j == 0 else p.bn_act(kept[j - 1].y, kept[j - 1].affine, None, True)
        dx, grads[j] = _step_backward(
            dy, a, unit.steps[j], sums, parameters[PER_STEP * j :], want[PER_STEP * j :], want_x or j > 0
        )
        if dx is not None:
            g = dx
    if isinstance(unit.shortcut, ConvNorm):
        j, own = len(unit.steps), kept[-1]
        sums, _ = p.backward_sums(grad, None, own.y, own.affine, None, False, False)
        dy = _input_gradient(p, grad, own, sums, unit.shortcut, False)
        other, grads[j] = _step_backward(
            dy, x, unit.shortcut, sums, parameters[PER_STEP * j :], want[PER_STEP * j :], want_x
        )
        return dx, other, grads
    return dx, grad if residual else None, grads


def _input_gradient(p: BnActPrimitives, g: Tensor, own: _SavedConv, sums: Tensor, step: ConvNorm, relu: bool) -> Tensor:
    return input_gradient(p, g, own.y, own.affine, sums, own.count, step.norm, relu)


def _step_backward(
    dy: Tensor,
    x: Tensor,
    step: ConvNorm,
    sums: Tensor,
    parameters: Sequence[NoneOr],
    want: Sequence[bool],
    want_x: bool,
) -> tuple[NoneOr, tuple[NoneOr, ...]]:
    weight, bias, scale, shift = parameters[:PER_STEP]
    assert weight is not None
    dx, dw, db = convolve_backward(dy, x, weight, step, (want_x, want[0], want[1] and bias is not None))
    return dx, (dw, db, norm_gradient(sums[1], scale, want[2]), norm_gradient(sums[0], shift, want[3]))


def norm_gradient(values: Tensor, parameter: NoneOr, wanted: bool) -> NoneOr:
    return _cast(values, parameter.dtype) if wanted and parameter is not None else None
