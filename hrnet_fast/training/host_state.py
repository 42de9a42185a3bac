"""What a capture may change on the host, although it computes nothing: compared and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, optim

from hrnet_fast.random_states import host_random_states, restore_host_random_states
from hrnet_fast.training.model_state import ModelState
from hrnet_fast.training.tensor_list import gradients_of


class HostState:
    """The host's side of a training step, before its capture.

    A capture runs the step's Python and no launch. What the Python changes besides launches happens once, and at no
    replay: numbers drawn from the host's random generators, steps that an optimizer counts, tensors in host memory,
    buffers that are replaced. :meth:`difference` finds such changes, as a graph would compute something else than the
    step; :meth:`restore` undoes them, and those of a capture that broke off.

    Args:
        model: the modules' state.
        parameters: whose gradients the step sets.
        optimizer, scaler: as the step has them.
    """

    def __init__(
        self, model: ModelState, parameters: Sequence[Tensor], optimizer: optim.Optimizer | None, scaler: Any
    ) -> None:
        self._model, self._parameters, self._optimizer, self._scaler = model, parameters, optimizer, scaler
        self._gradients = gradients_of(parameters)
        state = {} if optimizer is None else optimizer.state
        self._optimizer_state = {p: dict(own) for p, own in state.items()}
        self._attributes = [_Attributes(one) for one in (optimizer, scaler) if one is not None]
        own = [t for entry in self._optimizer_state.values() for t in entry.values() if isinstance(t, Tensor)]
        host = [*model.host_tensors(), *(t for t in own if t.device.type == "cpu")]
        self._host_tensors = [(t, t.detach().clone()) for t in host]
        self._random = host_random_states()

    def difference(self) -> str | None:
        """Say what the capture changed on the host that each step has to change anew, or None."""
        change = self._model.change()
        if change is not None:
            return f"the step's Python changes the model: {change}"
        now = {} if self._optimizer is None else self._optimizer.state
        if {p: _identities(own) for p, own in now.items()} != {
            p: _identities(own) for p, own in self._optimizer_state.items()
        }:
            return (
                f"{type(self._optimizer).__name__} makes or replaces state in a step; states must be tensors that stay"
            )
        if not all(torch.equal(t, then) for t, then in self._host_tensors):
            return "the step changes a tensor in host memory"
        for name, then in self._random.items():
            if not _same(host_random_states()[name], then):
                return (
                    f"the step draws from the host's random generator of {name}; torch's of the device can be captured"
                )
        return None

    def restore(self) -> None:
        """Put everything back."""
        self._model.restore()
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = gradient
        for one in self._attributes:
            one.restore()
        if self._optimizer is not None:
            state = self._optimizer.state
            for p in list(state):
                own = self._optimizer_state.get(p)
                if own is None:
                    del state[p]
                else:
                    state[p].clear()
                    state[p].update(own)
        with torch.no_grad():
            for t, then in self._host_tensors:
                t.copy_(then)
        restore_host_random_states(self._random)


class _Attributes:
    """An object's attributes, and the contents of its dicts."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._own = dict(vars(owner))
        self._contents = [(v, dict(v)) for k, v in self._own.items() if isinstance(v, dict) and k != "state"]

    def restore(self) -> None:
        vars(self._owner).clear()
        vars(self._owner).update(self._own)
        for one, contents in self._contents:
            one.clear()
            one.update(contents)


def _identities(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: id(v) if isinstance(v, Tensor) else v for k, v in entry.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):  # numpy's has an array inside
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a is b or (a == b if not hasattr(a, "all") else (a == b).all()))
