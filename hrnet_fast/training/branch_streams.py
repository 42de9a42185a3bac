"""Branches of a module on parallel streams, inside the capture of a training step.

Memory. PyTorch's allocator hands a freed block to the next tensor of the stream that the block belongs to, at once,
though other streams may still read it. Here it never does so too early, by the order in which streams wait:

- Between a fork and its join, the capture's own stream allocates nothing. A block of its own that a branch frees is
  given to a tensor behind the join, which waits for all branches.
- A branch's stream waits for the capture's stream at each fork. A block of a branch that was used outside, by the
  fusion for instance, is given to a tensor behind the next fork, which waits for that use.
- A tensor of one branch is never used on the stream of another.

Backward runs each node on the stream of its forward. A fork in backward is the fusion's node, which all branches'
gradients come from; the join is the node of :class:`_Fork`, which waits for the gradients of all branches. Between the
two, autograd runs the nodes of the branches alone: what was made behind them has run, what was made before them waits
for :class:`_Fork`. Gradients that cross streams are recorded by autograd on both.

Gradients of parameters belong to the branch's stream; autograd lets the capture's stream wait for them at the end of
backward. DistributedDataParallel copies them into its buckets without such waits: it must have one stream.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrnet_fast.graph_capture import new_event, side_streams
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of

_active = threading.local()


@contextlib.contextmanager
def parallel_branches() -> Iterator[None]:
    """Let this thread run the branches of accelerated modules on parallel streams, within a capture."""
    before = active()
    _active.on = True
    try:
        yield
    finally:
        _active.on = before


def active() -> bool:
    """Whether this thread runs branches on parallel streams."""
    return getattr(_active, "on", False)


def run_branches(branches: Iterable[Callable[[Tensor], Any]], xs: Sequence[Tensor]) -> list[Any]:
    """Return each branch's result for its own map, in order; on parallel streams where that is on."""
    pairs = list(zip(branches, xs, strict=True))
    # A branch whose input needs no gradient has nobody behind it in backward that would wait for it.
    joined = not torch.is_grad_enabled() or all(x.requires_grad for x in xs)
    if not active() or len(pairs) < 2 or not joined:
        return [branch(x) for branch, x in pairs]
    inputs = _forked(xs) if torch.is_grad_enabled() else xs
    device = xs[0].device
    main = torch.cuda.current_stream(device)
    # Modules of all stages have the same streams, and find each other's memory there.
    streams = side_streams(device, main, max(4, len(pairs)))[: len(pairs)]
    begin = new_event()
    begin.record(main)
    outputs, ends = [], []
    for (branch, _), x, stream in zip(pairs, inputs, streams, strict=True):
        stream.wait_event(begin)
        with torch.cuda.stream(stream):
            outputs.append(branch(x))
        ends.append(new_event())
        ends[-1].record(stream)
    for end in ends:
        main.wait_event(end)
    return outputs


def _forked(xs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the maps, behind one node in autograd's graph."""
    recomputations = [recomputation_of(x) for x in xs]
    outputs: tuple[Tensor, ...] = _Fork.apply(recomputations, *xs)  # type: ignore[no-untyped-call]
    # Two branches that compute an activation of one node again would share it across their streams.
    nodes = [source and source.node for source in recomputations]
    recomputable = [x for x, node in zip(outputs, nodes, strict=True) if node is not None and nodes.count(node) == 1]
    if recomputable:
        attach(*recomputable)
    return outputs


class _Fork(torch.autograd.Function):
    """The identity of several maps: one node, whose backward runs when the gradients of all of them are there."""

    @staticmethod
    def forward(ctx: Any, recomputations: list[Recomputation | None], *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # A map that can be computed again still can: its consumer need not keep a copy in another layout.
        ctx.recomputations, ctx.recompute = recomputations, _recomputed_input
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(_: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return None, *grads


def _recomputed_input(ctx: Any, number: int) -> Tensor:
    source: Recomputation = ctx.recomputations[number]
    return source.tensor()
