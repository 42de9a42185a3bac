"""Activations that are computed again in backward instead of being kept.

A chain of residual units keeps its convolutions' outputs; its own output follows from them by elementwise passes. So
whoever consumes that output in training need not keep it either: it keeps a recipe, which asks the node that made it.
Backward reaches a consumer before the producer, hence the producer's tensors are still there when they are asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Recipe(NamedTuple):
    """How to have an activation again: ``node`` is the graph node that made it, and has ``again()``."""

    node: Any

    def tensor(self) -> Tensor:
        found: Tensor = self.node.again(self.node)
        return found


def attach(output: Tensor) -> Tensor:
    """Let consumers of `output` find its recipe; its node is one of :mod:`hrnet_fast.nn.chain`.

    The node carries it, not the tensor: whoever saves or copies that finds nothing unusual about it.
    """
    node: Any = output.grad_fn
    if node is not None:
        node.made = output._version  # a tensor that was changed in place since is another activation
    return output


def recipe_of(x: Tensor) -> Recipe | None:
    """Return the recipe of `x` if it still holds."""
    node: Any = x.grad_fn
    made = getattr(node, "made", None)
    return Recipe(node) if made is not None and x._version == made else None
