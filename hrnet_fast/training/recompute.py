"""Activations that are computed again in backward instead of being kept.

A chain of residual units keeps its convolutions' outputs; its own output follows from them by elementwise passes. So
whoever consumes that output in training need not keep it either: it keeps a recipe, which asks the node that made it.
Backward reaches a consumer before the producer, hence the producer's tensors are still there when they are asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Recomputation(NamedTuple):
    """How to have an activation again: it is output number ``number`` of ``node``, which has ``again()``.

    The layout in memory may be another than the activation's.
    """

    node: Any
    number: int

    def tensor(self) -> Tensor:
        found: Tensor = self.node.again(self.node, self.number)
        return found


def attach(*outputs: Tensor) -> None:
    """Let consumers of a node's outputs find their recipes; it is one of this package's.

    The node carries them, not the tensors: whoever saves or copies those finds nothing unusual about them.
    """
    node: Any = outputs[0].grad_fn
    if node is not None:
        # A tensor that was changed in place since is another activation.
        node.made = {output.output_nr: output._version for output in outputs}


def recomputation_of(x: Tensor) -> Recomputation | None:
    """Return the recipe of `x` if it still holds."""
    node: Any = x.grad_fn
    made: dict[int, int] | None = getattr(node, "made", None)
    return Recomputation(node, x.output_nr) if made is not None and made.get(x.output_nr) == x._version else None
