"""Recomputation of activations in backward, in place of keeping them.

A chain of residual units keeps its convolutions' outputs; its own output follows from them by elementwise passes. A
consumer of that output therefore keeps no tensor either, but the graph node that can compute it. Backward reaches a
consumer before the producer, hence the producer still has its saved tensors then.

Nodes of the compiled extension do the same among themselves, and understand nodes in Python (csrc/training/autograd.h).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrnet_fast.ops.primitives import load_compiled


class Recomputation(NamedTuple):
    """An activation that can be computed again: output number ``number`` of ``node``, which has ``recompute``.

    The result may have another memory format than the activation.
    """

    node: Any
    number: int

    def tensor(self) -> Tensor:
        found: Tensor = self.node.recompute(self.node, self.number)
        return found


def attach(*outputs: Tensor) -> None:
    """Declare that the node of these outputs can compute them again: it has ``recompute(node, number)``.

    The node is marked and not the tensors, which stay as any others for who saves or copies them.
    """
    node: Any = outputs[0].grad_fn
    if node is not None:
        # A tensor that was changed in place since is another activation.
        node.output_versions = {output.output_nr: output._version for output in outputs}


def recomputation_of(x: Tensor) -> Any | None:
    """Return how to compute `x` again, or None where it must be kept.

    It is a :class:`Recomputation`, or for a node of the compiled extension an object with the same ``node``, which
    tells nodes apart, and ``tensor()``.
    """
    node: Any = x.grad_fn
    if node is None:
        return None
    versions: dict[int, int] | None = getattr(node, "output_versions", None)
    if versions is not None:
        return Recomputation(node, x.output_nr) if versions.get(x.output_nr) == x._version else None
    extension = load_compiled()
    return None if extension is None else extension.recomputation_of(x)


def saved_tensors(ctx: Any) -> list[Tensor]:
    """Return a node's saved tensors. Within one pass, ``torch.utils.checkpoint`` lets them be fetched only once."""
    task = torch._C._current_graph_task_id()
    if ctx.cache is None or ctx.cache[0] != task:
        ctx.cache = (task, list(ctx.saved_tensors))
    found: list[Tensor] = ctx.cache[1]
    return found
