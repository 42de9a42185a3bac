"""What a graph needs of an optimizer: a step that can be captured, and learning rates that change between replays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import optimizer as optimizer_module

# Their captured steps read a learning rate from the device. Others get a number, which is a constant in a graph.
_TENSOR_RATES = (
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adadelta, optim.RMSprop,
)  # fmt: skip


def optimizer_refusal(optimizer: optim.Optimizer) -> str | None:
    """Say why an optimizer's step cannot be captured and what to change, or None."""
    name, groups = type(optimizer).__name__, optimizer.param_groups
    if has_hooks(optimizer):
        return f"{name} has step hooks, which run in Python at every step"
    if isinstance(optimizer, optim.LBFGS):
        return "LBFGS evaluates the loss several times in one step; use SGD, or AdamW with capturable=True"
    if type(optimizer) is optim.SGD:
        if any(group["differentiable"] for group in groups):
            return "SGD was made with differentiable=True; make it without"
        return None
    if not all("capturable" in group for group in groups):
        return (
            f"{name} has no option capturable; use SGD, or torch.optim.AdamW or another one with capturable=True, or "
            "leave the optimizer out and call its step() yourself"
        )
    if not all(group["capturable"] for group in groups):
        return f"{name} was made without capturable=True: {name}(..., capturable=True)"
    return None


def has_hooks(optimizer: optim.Optimizer) -> bool:
    """Whether Python functions are registered to run at each step."""
    own = any(getattr(optimizer, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post"))
    return own or bool(optimizer_module._global_optimizer_pre_hooks or optimizer_module._global_optimizer_post_hooks)


def hyperparameters(optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    """Return what a graph has as constants: every group's parameters and options, without a rate on the device."""
    names = ["params", *optimizer.defaults]
    found: list[dict[str, Any]] = [{name: group.get(name) for name in names} for group in optimizer.param_groups]
    for group in found:
        group["params"] = list(group["params"])
        rate = group.get("lr")
        if isinstance(rate, Tensor) and rate.device.type != "cpu":
            group["lr"] = id(rate)  # a graph reads it where it is
        elif type(optimizer) in _TENSOR_RATES:
            del group["lr"]
    return found


def changed_hyperparameter(now: list[dict[str, Any]], then: list[dict[str, Any]]) -> str:
    """Name what differs."""
    if [group.keys() for group in now] != [group.keys() for group in then]:
        return "the optimizer's parameter groups"
    for a, b in zip(now, then, strict=True):
        for name, value in a.items():
            with contextlib.suppress(RuntimeError):  # tensors of several elements
                if value is b.get(name) or value == b.get(name):
                    continue
            return f"the optimizer's {name}"
    return "the optimizer's state"


class LearningRates:
    """The learning rates of an optimizer's groups as tensors on a device. The groups keep their numbers.

    Schedulers write numbers into the groups as ever; :meth:`refresh` writes those that changed to the device. A rate
    that is a tensor on the device already is left to its owner.
    """

    def __init__(self, optimizer: optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._fuses = type(optimizer) is optim.SGD
        known = type(optimizer) in _TENSOR_RATES
        self._tensors: list[Tensor | None] = []
        for group in optimizer.param_groups:
            given = group.get("lr")
            on_device = isinstance(given, Tensor) and given.device == device
            self._tensors.append(torch.zeros((), device=device) if known and not on_device else None)
        self._values: list[float | None] = [None] * len(self._tensors)

    def refresh(self) -> None:
        """Write rates that changed since the last call to the device: one launch each."""
        for k, (group, tensor) in enumerate(zip(self._optimizer.param_groups, self._tensors, strict=True)):
            if tensor is None:
                continue
            value = float(group["lr"])
            if value != self._values[k]:
                tensor.fill_(value)
                self._values[k] = value

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the groups have the tensors, for one step.

        SGD steps by its fused implementation meanwhile: its others read a tensor's value on the host.
        """
        groups = self._optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for group, tensor in zip(groups, self._tensors, strict=True):
                if self._fuses:
                    if not self._has_equal_momentum(group):
                        continue  # the fused implementation needs it of all parameters or of none
                    group.update(fused=True, foreach=False)
                if tensor is not None:
                    group["lr"] = tensor
            yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update({name: own[name] for name in ("lr", "fused", "foreach") if name in own})

    def _has_equal_momentum(self, group: dict[str, Any]) -> bool:
        """Whether all parameters with a gradient have a momentum, or none has."""
        state = self._optimizer.state
        lacking = [state.get(p, {}).get("momentum_buffer") is None for p in group["params"] if p.grad is not None]
        return not group["momentum"] or all(lacking) or not any(lacking)
