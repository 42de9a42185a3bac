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
    rows: Sequence[Sequence[tuple[int, int, Sequence[Pair]]]], mode: str, align_corners: bool
) -> Any | None:
    """Return a ``StackedFusion`` of terms (source, target, layers) per target, or None where it cannot be compiled."""
    extension = load_compiled()
    if extension is None or not all(_is_local(pair) for row in rows for _, _, layers in row for pair in layers):
        return None
    sources = 1 + max(source for row in rows for source, _, _ in row)
    described = [[(source, target, [_layer(p) for p in layers]) for source, target, layers in row] for row in rows]
    return extension.StackedFusion(described, sources, RESAMPLE[mode, align_corners])


def _is_local(pair: Pair) -> bool:
    """Whether the normalisation's statistics are this process's alone."""
    return not isinstance(pair[1], nn.SyncBatchNorm)


def _layer(pair: Pair) -> tuple[nn.Module, nn.Module, bool]:
    return *pair, not isinstance(pair[1], nn.modules.batchnorm._BatchNorm)


def run_chain(call: Any, x: Tensor, memory: str, adds_input: bool) -> Tensor | str:
    """Run a ``ResidualChainCall`` on `x`, or say why it cannot; differentiable once.

    `adds_input`: the first unit's shortcut is the identity.
    """
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != dtype and adds_input:
        return "the first shortcut adds a float32 input to half precision"
    if dtype is None and not call.computes_in(x.dtype):
        return "weights and input differ in dtype"
    parameters = call.parameters()
    blocks = dtype is None and call.normalises_batches and sums_by_channel_blocks(x)
    if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters)):
        out: Tensor = _ChainFunction.apply(call, memory, dtype, blocks, recomputation_of(x), x, *parameters)  # type: ignore[no-untyped-call]
        attach(out)
        return out
    return in_input_format(call.run(_to_input(x, dtype), blocks), x)


def _to_input(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return `x` in the dtype and memory format of the convolutions."""
    return in_compute_format(x if dtype is None else x.to(dtype))


class _ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Any, memory: str, dtype: torch.dtype | None, blocks: bool,
        recomputation: Recomputation | None, x: Tensor, *parameters: NoneOr,
    ) -> Tensor:  # fmt: skip
        ctx.call, ctx.recomputation, ctx.dtype, ctx.given_dtype = call, recomputation, dtype, x.dtype
        ctx.recompute, ctx.cache = _recompute_output, None
        given, x = x, _to_input(x, dtype)
        out, kept = call.forward(x, memory, blocks)
        ctx.keeps_output = memory == "fast"
        ctx.save_for_backward(*kept, *([out] if ctx.keeps_output else []), *([] if recomputation else [x]), *parameters)
        return in_input_format(out, given)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        kept = _recomputed(ctx)
        ctx.cache = None
        want = ctx.needs_input_grad[5:]
        dx, *grads = ctx.call.backward(kept, grad, want[0], want[1:])
        return None, None, None, None, None, None if dx is None else dx.to(ctx.given_dtype), *grads


def _recompute_output(ctx: Any, _: int) -> Tensor:
    """Return the chain's output for its consumer's backward; the chain's own backward then finds it cached."""
    output: Tensor = _recomputed(ctx).output
    return output


def _recomputed(ctx: Any) -> Any:
    """Return a ``ChainActivations`` with all that backward needs; cached for one backward pass, as residual_chain's."""
    task = torch._C._current_graph_task_id()
    if ctx.cache is not None and ctx.cache[0] == task:
        return ctx.cache[1]
    saved, n = list(ctx.saved_tensors), ctx.call.kept
    kept, rest = saved[:n], saved[n:]
    output = rest.pop(0) if ctx.keeps_output else None
    x = rest.pop(0) if ctx.recomputation is None else _to_input(ctx.recomputation.tensor(), ctx.dtype)
    found = ctx.call.recompute(kept, x, rest, output)
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
