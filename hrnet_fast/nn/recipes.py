"""Activations that are computed again in backward instead of being kept.

A chain of residual units keeps its convolutions' outputs; its own output follows from them by elementwise passes. So
whoever consumes that output in training need not keep it either: it keeps a recipe, which asks the node that made it.
Backward reaches a consumer before the producer, hence the producer's tensors are still there when they are asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

_ATTRIBUTE = "_hrnet_fast_recipe"


class Recipe(NamedTuple):
    """How to have an activation again.

    Attributes:
        node: the graph node that made it; has ``again()``.
        version: of the tensor when it was made: one that was changed in place since is another activation.
    """

    node: Any
    version: int

    def tensor(self) -> Tensor:
        found: Tensor = self.node.again(self.node)
        return found


def attach(output: Tensor) -> Tensor:
    """Let consumers of `output` find its recipe; its node is one of :mod:`hrnet_fast.nn.chain`."""
    if output.grad_fn is not None:
        setattr(output, _ATTRIBUTE, Recipe(output.grad_fn, output._version))
    return output


def recipe_of(x: Tensor) -> Recipe | None:
    """Return the recipe of `x` if it still holds."""
    recipe: Recipe | None = getattr(x, _ATTRIBUTE, None)
    holds = recipe is not None and x._version == recipe.version and x.grad_fn is recipe.node
    return recipe if holds else None
