"""Arguments of calls: nested lists, tuples and mappings in which slots and names stand for tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.inference.plan import Slot
from hrnet_fast.inference.recording import Named


def named_leaves(tree: Any) -> list[Named]:
    if isinstance(tree, Named):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in named_leaves(part)] if isinstance(tree, (list, tuple)) else []


def fill_in(tree: Any, slots: Sequence[Any], named: Mapping[str, Tensor]) -> Any:
    """Put tensors in place of their slots and names."""
    if isinstance(tree, Slot):
        return slots[tree.index]
    if isinstance(tree, Named):
        return named[tree.name]
    if isinstance(tree, dict):
        return type(tree)({k: fill_in(v, slots, named) for k, v in tree.items()})
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        parts = [fill_in(v, slots, named) for v in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree
