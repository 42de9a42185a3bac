"""Slots: the tensors of one call that lie outside the buffers, and the functions that are called on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.tracer import EngineDevice, EngineDtype, StateRef
from hrnet_fast.inference.steps import CallStep, Slot


def state_names(plan: Plan) -> list[str]:
    """Return the names of the parameters and buffers that a plan's calls and its output read."""
    calls = [(step.args, step.kwargs) for step in plan.steps if isinstance(step, CallStep)]
    leaves = tree_leaves([*calls, plan.output])
    return list(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, StateRef)))


def own_copy(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a copy, which later changes of the model do not reach; of `dtype` where the tensor is floating."""
    source = tensor.detach()
    return source.to(device, dtype if source.is_floating_point() else source.dtype, copy=True)


def copy_state(
    plan: Plan, tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return copies of the tensors that a plan's calls and its output read, by name."""
    return {name: own_copy(tensors[name], device, dtype) for name in state_names(plan)}


def normalization_tensors(plan: Plan, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift [C] of images of bytes, or None for floating inputs.

    Executors make them once: nothing can be copied from the host while a CUDA graph is captured.
    """
    if plan.normalization is None:
        return None
    scale, shift = (torch.tensor(values, dtype=dtype, device=device) for values in plan.normalization)
    return scale, shift


def device_of(x: Tensor | tuple[Tensor, ...]) -> torch.device:
    """Return the device of an input, or of the first one of several."""
    return x.device if isinstance(x, Tensor) else x[0].device


class Slots:
    """Tensors by slot during one call.

    Args:
        plan: the plan.
        x: the input, floating [N, C, H, W] or bytes [N, H, W, C]; or several floating inputs.
        state: tensors that calls read, by name.
        dtype: of floating tensors outside the buffers.
        normalization: as :func:`normalization_tensors` returns it.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor | tuple[Tensor, ...],
        state: Mapping[str, Tensor],
        dtype: torch.dtype,
        normalization: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.dtype = dtype
        self._plan, self._state, self._normalization = plan, state, normalization
        self._device = device_of(x)
        own = x if isinstance(x, Tensor) else tuple(part.to(dtype) for part in x)
        self._tensors: list[Any] = [own, *[None] * (plan.slots - 1)]

    def __getitem__(self, slot: int) -> Any:
        return self._tensors[slot]

    def __setitem__(self, slot: int, value: Any) -> None:
        self._tensors[slot] = value

    def network_input(self) -> Any:
        """Return the input as the model takes it: normalised, [N, C, H, W] in :attr:`dtype`; several are a tuple."""
        if isinstance(self._tensors[0], tuple):
            return self._tensors[0]
        x: Tensor = self._tensors[0].to(self.dtype)
        if self._normalization is None:
            return x
        scale, shift = self._normalization
        return (x * scale + shift).permute(0, 3, 1, 2)

    def call(self, step: CallStep) -> None:
        """Call the step's function and keep its result."""
        args, kwargs = self._resolved((step.args, step.kwargs))
        self[step.slot] = step.function(*args, **kwargs)

    def output(self, dtype: torch.dtype) -> Any:
        """Return the network's output, floating tensors in `dtype`."""
        return tree_map(
            lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
            self._resolved(self._plan.output),
        )

    def _resolved(self, tree: Any) -> Any:
        """Replace slots, names of tensors, and placeholders of device and dtype."""

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                return self.network_input() if leaf.index == 0 else self[leaf.index]
            if isinstance(leaf, StateRef):
                return self._state[leaf.name]
            if isinstance(leaf, EngineDevice):
                return self._device
            return self.dtype if isinstance(leaf, EngineDtype) else leaf

        return tree_map(resolve, tree)
