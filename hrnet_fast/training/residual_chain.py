"""Chains of residual units, and of convolutions with normalisation, whose backward recomputes activations.

Kept for backward are each convolution's output and its [4, C] of normalisation; activations are computed again from
them by elementwise passes, and no convolution runs twice. With ``memory="fast"`` activations are kept too, and with
``memory="min"`` only the chain's input is, and its convolutions do run again.

:mod:`hrnet_fast.training.compiled` computes the same in one call of the compiled extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrnet_fast.implementations import OperatorImplementations
from hrnet_fast.ops.primitives import BnActPrimitives, load_bn_act
from hrnet_fast.training.batch_norm import ValueCount, count_batches
from hrnet_fast.training.conv_norm import (
    PER_STEP,
    ConvNorm,
    NoneOr,
    SavedConv,
    autocast_dtype,
    conv_norm,
    conv_norm_backward,
)
from hrnet_fast.training.memory_format import in_compute_format, in_input_format, sums_by_channel_blocks
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of


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
        primitives: of the normalisations.
        memory: ``"fast"``, ``"lean"`` or ``"min"``: what is kept for backward.
        dtype: of the convolutions under autocast, or None.
        blocks: sum long windows by blocks of channels: see :mod:`hrnet_fast.training.memory_format`.
    """

    units: tuple[Unit, ...]
    primitives: BnActPrimitives
    memory: str
    dtype: torch.dtype | None
    blocks: bool = False

    def steps(self) -> list[ConvNorm]:
        return [step for unit in self.units for step in unit.all_steps()]

    def to_input(self, x: Tensor) -> Tensor:
        """Return `x` in the dtype and memory format of the convolutions."""
        return in_compute_format(x if self.dtype is None else x.to(self.dtype))


def run_units(units: Sequence[Unit], x: Tensor, operators: OperatorImplementations, memory: str) -> Tensor | str:
    """Run supported units on `x`, or say why this call cannot."""
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != dtype and units[0].shortcut is True:
        return "the first shortcut adds a float32 input to half precision"
    if dtype is None and any(s.weight.dtype != x.dtype for u in units for s in u.all_steps()):
        return "weights and input differ in dtype"
    blocks = dtype is None and units[0].steps[0].norm.batch and sums_by_channel_blocks(x)
    return run_chain(Chain(tuple(units), load_bn_act(operators.bn_act), memory, dtype, blocks), x)


def run_chain(chain: Chain, x: Tensor) -> Tensor:
    """Return the chain's output, [N, C, H, W]; differentiable once, in the input and every parameter."""
    steps = chain.steps()
    parameters = [p for s in steps for p in s.parameters()]
    count_batches([s.norm for s in steps])
    if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters)):
        out: Tensor = _ChainFunction.apply(chain, recomputation_of(x), x, *parameters)  # type: ignore[no-untyped-call]
        attach(out)
        return out
    return in_input_format(_chain_forward(chain, chain.to_input(x), None), x)


def _chain_forward(
    chain: Chain,
    x: Tensor,
    keep: list[SavedConv] | None,
    outputs: list[Tensor] | None = None,
    known: Iterator[tuple[Tensor, ValueCount]] | None = None,
) -> Tensor:
    """Return the chain's output.

    Args:
        x: the input as :meth:`Chain.to_input` returns it.
        keep: gathers what backward needs of convolutions.
        outputs: gathers the units' outputs.
        known: normalisations that an earlier run found.
    """
    primitives = chain.primitives
    for unit in chain.units:
        # Not in basic units: they hold most of a network's multiply-adds and, behind stem and first stage, little of
        # its error.
        blocks = chain.blocks and len(unit.steps) != 2
        saved, a = list[SavedConv](), x
        for step in unit.steps:
            if saved:
                a = saved[-1].activated(primitives)
                if keep is not None and chain.memory == "fast":
                    saved[-1] = saved[-1]._replace(activation=a)
            saved.append(conv_norm(primitives, a, step, blocks, next(known) if known else None))
        if isinstance(unit.shortcut, ConvNorm):
            saved.append(conv_norm(primitives, x, unit.shortcut, blocks, next(known) if known else None))
        x = _unit_output(primitives, unit, saved, x)
        if keep is not None:
            keep += saved
        if outputs is not None:
            outputs.append(x)
    return x


def _unit_output(primitives: BnActPrimitives, unit: Unit, saved: Sequence[SavedConv], x: Tensor) -> Tensor:
    """Return a unit's output from its convolutions' and its input."""
    last = saved[len(unit.steps) - 1]
    if isinstance(unit.shortcut, ConvNorm):
        return primitives.bn_act(last.y, last.affine, saved[-1].y, True, saved[-1].affine)
    return primitives.bn_act(last.y, last.affine, x if unit.shortcut else None, True)


class _ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: Chain, recomputation: Recomputation | None, x: Tensor, *parameters: NoneOr) -> Tensor:
        ctx.chain, ctx.recomputation, ctx.given_dtype = chain, recomputation, x.dtype
        ctx.recompute, ctx.cache = _recompute_output, None
        ctx.device_type = x.device.type
        given, x = x, chain.to_input(x)
        keep, outputs = list[SavedConv](), list[Tensor]()
        out = _chain_forward(chain, x, keep, outputs)
        ctx.counts = [k.count for k in keep]
        ys = [] if chain.memory == "min" else [k.y for k in keep]
        activations = [*(k.activation for k in keep), *outputs] if chain.memory == "fast" else []
        ctx.save_for_backward(
            *([] if recomputation else [x]), *[k.affine for k in keep], *ys, *activations, *parameters
        )
        return in_input_format(out, given)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved, activations, parameters = _recomputed(ctx)
        ctx.cache = None
        found: list[tuple[NoneOr, ...]] = []
        want = ctx.needs_input_grad[3:]
        dx: NoneOr = grad
        addend: NoneOr = None
        end = len(saved)
        for k in reversed(range(len(ctx.chain.units))):
            unit = ctx.chain.units[k]
            begin = end - len(unit.all_steps())
            out = activations.pop()
            assert dx is not None
            own = slice(PER_STEP * begin, PER_STEP * end)
            want_x = k > 0 or ctx.needs_input_grad[2]
            dx, addend, grads = _unit_backward(
                ctx.chain.primitives, unit, saved[begin:end], activations[-1], out, dx, addend, parameters[own],
                want[own], want_x,
            )  # fmt: skip
            del saved[begin:end], out
            found = grads + found
            end = begin
        if dx is not None and addend is not None:
            dx = dx + addend
        dx = None if dx is None or not ctx.needs_input_grad[2] else dx.to(ctx.given_dtype)
        return None, None, dx, *[g for step in found for g in step]


def _recompute_output(ctx: Any, _: int) -> Tensor:
    """Return the chain's output for its consumer's backward; the chain's own backward then finds it cached."""
    found: Tensor = _recomputed(ctx)[1][-1]
    return found


_Recomputed = tuple[list[SavedConv], list[Tensor], list[NoneOr]]


def _recomputed(ctx: Any) -> _Recomputed:
    """Return every convolution's results, the units' inputs followed by the output, and the parameters.

    They are cached for one backward pass: a consumer's backward and the chain's own both need them, and
    ``torch.utils.checkpoint`` lets saved tensors be fetched only once. Before the next pass parameters may change.
    """
    task = torch._C._current_graph_task_id()
    if ctx.cache is not None and ctx.cache[0] == task:
        cached: _Recomputed = ctx.cache[1]
        return cached
    # An autocast around backward would change the precision of convolutions that run again.
    with torch.autocast(ctx.device_type, enabled=False):
        found = _recompute(ctx)
    ctx.cache = (task, found)
    return found


def _recompute(ctx: Any) -> _Recomputed:
    chain: Chain = ctx.chain
    tensors = list(ctx.saved_tensors)
    x = tensors.pop(0) if ctx.recomputation is None else chain.to_input(ctx.recomputation.tensor())
    n = len(ctx.counts)
    known = list(zip(tensors[:n], ctx.counts, strict=True))
    activations = [x]
    saved: list[SavedConv] = []
    if chain.memory == "min":
        _chain_forward(chain, x, saved, activations, iter(known))
    elif chain.memory == "fast":
        kept = zip(tensors[n : 2 * n], known, tensors[2 * n : 3 * n], strict=True)
        saved = [SavedConv(y, *normalised, activation) for y, normalised, activation in kept]
        activations += tensors[3 * n : 3 * n + len(chain.units)]
    else:
        saved = [SavedConv(y, affine, count) for y, (affine, count) in zip(tensors[n : 2 * n], known, strict=True)]
        start = 0
        for unit in chain.units:
            end = start + len(unit.all_steps())
            x = _unit_output(chain.primitives, unit, saved[start:end], x)
            activations.append(x)
            start = end
    return saved, activations, tensors[-PER_STEP * n :]


def _unit_backward(
    primitives: BnActPrimitives, unit: Unit, saved: list[SavedConv], x: Tensor, out: Tensor, grad: Tensor, addend:
    NoneOr, parameters: Sequence[NoneOr], want: Sequence[bool], want_x: bool,
) -> tuple[NoneOr, NoneOr, list[tuple[NoneOr, ...]]]:  # fmt: skip
    """Return the gradient of a unit's input in two parts, to be added, and those of every step's parameters.

    Args:
        saved: its convolutions' results.
        x, out: its input and output.
        grad, addend: the gradient of its output in two parts.
        parameters, want: four of each step, and whether their gradients are wanted.
    """
    grads: list[tuple[NoneOr, ...]] = [()] * len(saved)
    residual = bool(unit.shortcut)
    dx: NoneOr = None
    g: Tensor = grad
    for j in reversed(range(len(unit.steps))):
        ends = j == len(unit.steps) - 1
        own, step = saved[j], unit.steps[j]
        sums, masked = primitives.backward_sums(
            g, addend if ends else None, own.y, own.affine, out if ends and residual else None, True, ends and
            (residual or addend is not None),
        )  # fmt: skip
        recompute_mask = masked is None  # else the gradient is masked already
        g = g if masked is None else masked
        if ends:
            grad = g
        dy = own.input_gradient(primitives, g, sums, step.norm, recompute_mask)
        a = x if j == 0 else saved[j - 1].activated(primitives)
        dx, grads[j] = conv_norm_backward(
            dy, a, step, sums, parameters[PER_STEP * j :], want[PER_STEP * j :], want_x or j > 0
        )
        if dx is not None:
            g = dx
    if isinstance(unit.shortcut, ConvNorm):
        j, own = len(unit.steps), saved[-1]
        sums, _ = primitives.backward_sums(grad, None, own.y, own.affine, None, False, False)
        dy = own.input_gradient(primitives, grad, sums, unit.shortcut.norm, False)
        other, grads[j] = conv_norm_backward(
            dy, x, unit.shortcut, sums, parameters[PER_STEP * j :], want[PER_STEP * j :], want_x
        )
        return dx, other, grads
    return dx, grad if residual else None, grads
