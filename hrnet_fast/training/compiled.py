"""Autograd nodes of residual chains and fusions whose forward and backward are one call of the compiled extension each.

What they compute is :mod:`residual_chain`'s and :mod:`stacked_fusion`'s, operator by operator; those run where the
extension is not there, across processes (SyncBN) and with Triton's passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrnet_fast import _C
from hrnet_fast.training.memory_format import in_compute_format, in_format_of, in_input_format
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of

NoneOr = Tensor | None


def run_chain(call: Any, x: Tensor, memory: str, dtype: torch.dtype | None, blocks: bool) -> Tensor:
    """Return the output, [N, C, H, W], of a ``_C.ResidualChainCall``; differentiable once."""
    parameters = call.parameters()
    if torch.is_grad_enabled() and (x.requires_grad or any(p is not None and p.requires_grad for p in parameters)):
        out: Tensor = _ChainFunction.apply(call, memory, dtype, blocks, recomputation_of(x), x, *parameters)  # type: ignore[no-untyped-call]
        attach(out)
        return out
    return in_input_format(call.run(_as_computed(x, dtype)), x)


def _as_computed(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return in_compute_format(x if dtype is None else x.to(dtype))


class _ChainFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Any, memory: str, dtype: torch.dtype | None, blocks: bool,
        recomputation: Recomputation | None, x: Tensor, *parameters: NoneOr,
    ) -> Tensor:  # fmt: skip
        ctx.call, ctx.recomputation, ctx.dtype, ctx.given_dtype = call, recomputation, dtype, x.dtype
        ctx.again, ctx.cache = _chain_output, None
        out, kept = call.forward(_as_computed(x, dtype), memory, blocks)
        ctx.keeps_output = memory == "fast"
        ctx.save_for_backward(*kept, *([out] if ctx.keeps_output else []), *([] if recomputation else [x]), *parameters)
        return in_input_format(out, x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        kept = _complete(ctx)
        ctx.cache = None
        want = ctx.needs_input_grad[5:]
        dx, *grads = ctx.call.backward(kept, grad, want[0], want[1:])
        return None, None, None, None, None, None if dx is None else dx.to(ctx.given_dtype), *grads


def _chain_output(ctx: Any, _: int) -> Tensor:
    output: Tensor = _complete(ctx).output
    return output


def _complete(ctx: Any) -> Any:
    """Return what backward needs, computed again where it was not kept.

    What a consumer's backward asked for serves the node's own within the same pass. It does not outlive that:
    parameters may move before the next. Within one pass, ``torch.utils.checkpoint`` lets tensors be fetched only once.
    """
    task = torch._C._current_graph_task_id()
    if ctx.cache is not None and ctx.cache[0] == task:
        return ctx.cache[1]
    saved = list(ctx.saved_tensors)
    n = ctx.call.kept
    kept, rest = saved[:n], saved[n:]
    out = rest.pop(0) if ctx.keeps_output else None
    x = ctx.recomputation.tensor() if ctx.recomputation is not None else rest.pop(0)
    found = ctx.call.complete(kept, _as_computed(x, ctx.dtype), rest, out)
    ctx.cache = (task, found)
    return found


def run_fusion(call: Any, xs: Sequence[Tensor], memory: str) -> list[Tensor]:
    """Return every target, [N, C_r, H_r, W_r], of a ``_C.StackedFusionCall``; differentiable once."""
    parameters = call.parameters()
    tensors = [t for t in (*xs, *parameters) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        recomputations = tuple(recomputation_of(x) for x in xs)
        found: tuple[Tensor, ...] = _FusionFunction.apply(call, memory, recomputations, *xs, *parameters)  # type: ignore[no-untyped-call]
        if in_compute_format(xs[0]) is not xs[0]:
            attach(*found)  # chains lay them out anew and would keep those copies
        return list(found)
    outs: list[Tensor] = call.run(list(xs))
    return outs


class _FusionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Any, memory: str, recomputations: tuple[Recomputation | None, ...], *tensors: NoneOr
    ) -> tuple[Tensor, ...]:
        sources = len(recomputations)
        xs: list[Tensor] = list(tensors[:sources])  # type: ignore[arg-type]
        # A target that nothing used has no gradient; nor have the parameters that serve it alone, as in plain modules.
        ctx.set_materialize_grads(False)
        ctx.call, ctx.recomputations, ctx.again, ctx.cache = call, recomputations, _fusion_output, None
        outs, kept = call.forward(xs, memory)
        ctx.targets = len(outs)
        own = [x for x, other in zip(xs, recomputations, strict=True) if other is None]
        ctx.save_for_backward(*kept, *outs, *own, *tensors[sources:])
        return tuple(outs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: NoneOr) -> tuple[Any, ...]:
        saved, n = _saved(ctx), ctx.call.kept
        outs, rest = saved[n : n + ctx.targets], iter(saved[n + ctx.targets :])
        xs = [
            next(rest) if other is None else in_format_of(other.tensor(), outs[0]) for other in ctx.recomputations
        ]
        want, sources = ctx.needs_input_grad[3:], len(xs)
        found = ctx.call.backward(saved[:n], xs, outs, grads, want[:sources], want[sources:])
        ctx.cache = None
        return None, None, None, *found


def _fusion_output(ctx: Any, index: int) -> Tensor:
    output: Tensor = _saved(ctx)[ctx.call.kept + index]
    return output


def _saved(ctx: Any) -> list[Tensor]:
    """What was kept. Within one pass, ``torch.utils.checkpoint`` lets tensors be fetched only once."""
    task = torch._C._current_graph_task_id()
    if ctx.cache is None or ctx.cache[0] != task:
        ctx.cache = (task, list(ctx.saved_tensors))
    found: list[Tensor] = ctx.cache[1]
    return found


__all__ = ["_C", "run_chain", "run_fusion"]
