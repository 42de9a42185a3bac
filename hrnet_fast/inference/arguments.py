"""Arguments of calls: nested lists, tuples and mappings in which slots and names stand for tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.errors import InputError
from hrnet_fast.inference.plan import CallStep, ImportStep, Plan, Slot, slot_leaves
from hrnet_fast.inference.planning.tracer import StateRef, EngineDevice, EngineDtype


def named_leaves(tree: Any) -> list[StateRef]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, StateRef)]


def own_copy(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A model's tensor as calls read it: a copy, which the model's later changes do not reach; indices stay indices."""
    kept = tensor.detach()
    return kept.to(device, dtype if kept.is_floating_point() else kept.dtype, copy=True)


def calls_read_input(plan: Plan) -> bool:
    """Whether a function is called on the network's input itself, or it is returned."""
    calls = [(s.args, s.kwargs) for s in plan.steps if isinstance(s, CallStep)]
    return any(leaf.index == 0 for leaf in slot_leaves([*calls, plan.output]))


def as_calls_read_it(plan: Plan, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The engine's input as the model's own functions take it: floating [N, C, H, W] of `dtype`.

    Raises:
        InputError: bytes, and no import says how they are normalised.
    """
    if x.dtype != torch.uint8:
        return x.to(dtype)
    step = next((s for s in plan.steps if isinstance(s, ImportStep) and s.slot == 0), None)
    if step is None or step.scale is None:
        raise InputError("Engine: normalize needs a network that begins with a 1x1 or 3x3 convolution.")
    scale, shift = (torch.tensor(v, dtype=dtype, device=x.device) for v in (step.scale, step.shift))
    return (x.to(dtype) * scale + shift).permute(0, 3, 1, 2)


def fill_in(tree: Any, slots: Sequence[Any], named: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """Put tensors in place of their slots and names; the engine's device and `dtype` in place of the model's own."""

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Slot):
            return slots[leaf.index]
        if isinstance(leaf, StateRef):
            return named[leaf.name]
        if isinstance(leaf, EngineDevice):
            return slots[0].device
        return dtype if isinstance(leaf, EngineDtype) else leaf

    return tree_map(fill, tree)
