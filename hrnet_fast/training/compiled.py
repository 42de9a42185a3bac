"""Autograd functions of chains and fusions whose forward and backward are one call of the compiled extension each.

They compute what :mod:`~hrnet_fast.training.residual_chain` and :mod:`~hrnet_fast.training.stacked_fusion` compute,
operator by operator (csrc/training). Those run without the extension, with Triton and with shared statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hrnet_fast.implementations import OperatorImplementations
from hrnet_fast.ops.primitives import RESAMPLE, load_compiled, memory_format_of
from hrnet_fast.training.conv_norm import NoneOr, autocast_dtype
from hrnet_fast.training.memory_format import in_compute_format, in_input_format, sums_by_channel_blocks
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of, saved_tensors

Pair = tuple[nn.Module, nn.Module]  # a convolution and its normalisation


def has_compiled_passes(operators: OperatorImplementations) -> bool:
    """Whether these implementations are the extension's own, which its chains and fusions call."""
    return operators.bn_act == operators.fuse_sum and operators.bn_act in ("cpu", "cuda")


def compile_chain(units: Sequence[tuple[Sequence[Pair], Pair | bool | None]]) -> Any | None:
    """Return a ``ResidualChain`` of supported units (layers, shortcut), or None where it cannot be compiled."""
    extension = load_compiled()
    pairs = [pair for layers, _ in units for pair in layers]
    pairs += [shortcut for _, shortcut in units if isinstance(shortcut, tuple)]
    if extension is None or not all(map(_is_local, pairs)):
        return None
    described = []
    for layers, shortcut in units:
        own = [_layer(pair) for pair in (*layers, *([shortcut] if isinstance(shortcut, tuple) else []))]
        described.append((own, 1 if isinstance(shortcut, tuple) else -1 if shortcut else 0))
    return extension.ResidualChain(described)


def compile_fusion(
    rows: Sequence[Sequence[tuple[int, int, Sequence[Pair], Any]]], mode: str, align_corners: bool
) -> Any | None:
    """Return a ``StackedFusion``, or None where it cannot be compiled.

    Args:
        rows: terms (source, target, layers, the layers' own upsampling) per target.
    """
    extension = load_compiled()
    if extension is None or not all(_is_local(pair) for row in rows for _, _, layers, _ in row for pair in layers):
        return None
    sources = 1 + max(source for row in rows for source, *_ in row)
    described = [[(source, target, [_layer(p) for p in layers]) for source, target, layers, _ in row] for row in rows]
    return extension.StackedFusion(described, sources, RESAMPLE[mode, align_corners])


def _is_local(pair: Pair) -> bool:
    """Whether the normalisation's statistics are this process's alone."""
    return not isinstance(pair[1], nn.SyncBatchNorm)


def _layer(pair: Pair) -> tuple[nn.Module, nn.Module, bool]:
    return *pair, not isinstance(pair[1], nn.modules.batchnorm._BatchNorm)


def join_chains(calls: Sequence[Any]) -> Any | None:
    """Return the chains of several ``ResidualChainsCall`` as one call, whose elementwise passes share launches.

    None where two of them share a layer, whose running statistics then move one after the other.
    """
    return load_compiled().ResidualChainsCall.joined(list(calls))  # type: ignore[union-attr]


def run_chains(call: Any, xs: Sequence[Tensor], memory: str) -> list[Tensor] | str:
    """Run each chain of a ``ResidualChainsCall`` on its input, or say why it cannot; differentiable once."""
    dtype = autocast_dtype(xs[0])
    if dtype is not None and any(x.dtype != dtype for x in xs) and call.adds_input():
        return "the first shortcut adds a float32 input to half precision"
    if dtype is None and not all(call.computes_in(x.dtype) for x in xs):
        return "weights and input differ in dtype"
    parameters = call.parameters()
    blocks = [dtype is None and call.normalises_batches(k) and sums_by_channel_blocks(x) for k, x in enumerate(xs)]
    tensors = [t for t in (*xs, *parameters) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        recomputations = tuple(recomputation_of(x) for x in xs)
        found: tuple[Tensor, ...] = _ChainsFunction.apply(call, memory, dtype, blocks, recomputations, *xs, *parameters)  # type: ignore[no-untyped-call]
        attach(*found)
        return list(found)
    outs = call.run([_to_input(x, dtype) for x in xs], blocks)
    return [in_input_format(out, x) for out, x in zip(outs, xs, strict=True)]


def _to_input(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return `x` in the dtype and memory format of the convolutions."""
    return in_compute_format(x if dtype is None else x.to(dtype))


class _ChainsFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Any, memory: str, dtype: torch.dtype | None, blocks: list[bool],
        recomputations: tuple[Recomputation | None, ...], *tensors: NoneOr,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        given: list[Tensor] = list(tensors[: len(recomputations)])  # type: ignore[arg-type]
        # A branch that nothing uses has no gradient; nor have its parameters, as in plain modules.
        ctx.set_materialize_grads(False)
        ctx.call, ctx.recomputations, ctx.dtype = call, recomputations, dtype
        ctx.given_dtypes = [x.dtype for x in given]
        ctx.recompute, ctx.cache = _recompute_output, None
        xs = [_to_input(x, dtype) for x in given]
        outs, kept = call.forward(xs, memory, blocks)
        ctx.keeps_output = memory == "fast"
        own = [x for x, again in zip(xs, recomputations, strict=True) if again is None]
        ctx.save_for_backward(*kept, *(outs if ctx.keeps_output else []), *own, *tensors[len(xs) :])
        return tuple(in_input_format(out, x) for out, x in zip(outs, given, strict=True))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: NoneOr) -> tuple[Any, ...]:
        kept = _recomputed(ctx)
        ctx.cache = None
        want, n = ctx.needs_input_grad[5:], len(grads)
        found = ctx.call.backward(kept, grads, want[:n], want[n:])
        dxs = [None if dx is None else dx.to(dtype) for dx, dtype in zip(found[:n], ctx.given_dtypes, strict=True)]
        return None, None, None, None, None, *dxs, *found[n:]


def _recompute_output(ctx: Any, number: int) -> Tensor:
    """Return a chain's output for its consumer's backward; the chains' own backward then finds it cached."""
    output: Tensor = _recomputed(ctx).output(number)
    return output


def _recomputed(ctx: Any) -> Any:
    """Return a ``ChainActivations`` with all that backward needs; cached for one backward pass, as residual_chain's."""
    task = torch._C._current_graph_task_id()
    if ctx.cache is not None and ctx.cache[0] == task:
        return ctx.cache[1]
    saved, n, chains = list(ctx.saved_tensors), ctx.call.kept, len(ctx.recomputations)
    kept, rest = saved[:n], saved[n:]
    outs, rest = (rest[:chains], rest[chains:]) if ctx.keeps_output else ([], rest)
    own = iter(rest)
    xs = [next(own) if r is None else _to_input(r.tensor(), ctx.dtype) for r in ctx.recomputations]
    found = ctx.call.recompute(kept, xs, list(own), outs)
    ctx.cache = (task, found)
    return found


def run_fusion(call: Any, xs: Sequence[Tensor]) -> list[Tensor]:
    """Return every target, [N, C_r, H_r, W_r], of a ``StackedFusionCall``; differentiable once."""
    parameters = call.parameters()
    tensors = [t for t in (*xs, *parameters) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        recomputations = tuple(recomputation_of(x) for x in xs)
        found: tuple[Tensor, ...] = _FusionFunction.apply(call, recomputations, *xs, *parameters)  # type: ignore[no-untyped-call]
        if in_compute_format(xs[0]) is not xs[0]:
            attach(*found)  # chains convert their layout and would keep those copies
        return list(found)
    targets: list[Tensor] = call.run(list(xs))
    return targets


class _FusionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Any, recomputations: tuple[Recomputation | None, ...], *tensors: NoneOr
    ) -> tuple[Tensor, ...]:
        sources = len(recomputations)
        xs: list[Tensor] = list(tensors[:sources])  # type: ignore[arg-type]
        # A target that nothing uses has no gradient; nor have the parameters of it alone, as in plain modules.
        ctx.set_materialize_grads(False)
        ctx.call, ctx.recomputations = call, recomputations
        ctx.recompute, ctx.cache = _saved_target, None
        outs, kept = call.forward(xs)
        ctx.targets = len(outs)
        own = [x for x, again in zip(xs, recomputations, strict=True) if again is None]
        ctx.save_for_backward(*kept, *outs, *own, *tensors[sources:])
        return tuple(outs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: NoneOr) -> tuple[Any, ...]:
        saved, n = saved_tensors(ctx), ctx.call.kept
        outs, rest = saved[n : n + ctx.targets], iter(saved[n + ctx.targets :])
        layout = memory_format_of(outs[0])
        again = [r and r.tensor().contiguous(memory_format=layout) for r in ctx.recomputations]
        xs = [next(rest) if x is None else x for x in again]
        want, sources = ctx.needs_input_grad[2:], len(xs)
        found = ctx.call.backward(saved[:n], xs, outs, grads, want[:sources], want[sources:])
        ctx.cache = None
        return None, None, *found


def _saved_target(ctx: Any, index: int) -> Tensor:
    """Return a target, for the chain that it is the input of."""
    target: Tensor = saved_tensors(ctx)[ctx.call.kept + index]
    return target
