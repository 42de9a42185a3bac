"""Which executor carries out a plan, and the weights that executors of several shapes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.inference import cpu
from hrnet_fast.inference.interpreter import Interpreter
from hrnet_fast.inference.plan import Plan


class Executor(Protocol):
    """Carries out one plan."""

    plan: Plan

    def __call__(self, x: Tensor, copy: bool = True) -> Any:
        """Return the network's output; with `copy`, tensors that no later call touches."""

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over new weights. No call runs meanwhile."""

    def profile(self, x: Tensor) -> list[tuple[int, float]]:
        """Return (number of the step in the plan, seconds) with every step run by itself."""

    def describe(self) -> list[str]:
        """What was chosen, and why."""


class Executors:
    """Makes executors of one dtype and device from one set of weights."""

    def __init__(
        self, dtype: torch.dtype, outer: torch.dtype, device: torch.device, tensors: Mapping[str, Tensor]
    ) -> None:
        self.dtype, self.outer, self.device = dtype, outer, device
        self.tensors = tensors
        self._state = _state(tensors)
        native = device.type == "cpu" and dtype in cpu.DTYPES and cpu.available()
        self._packed = cpu.PackedWeights(dtype, tensors) if native else None

    def make(self, plan: Plan) -> Executor:
        """Return an executor for `plan`.

        Raises:
            InputError: the weights changed since they were read: shapes would answer with different ones.
        """
        self.check_unchanged("an input of a new shape")
        if self._packed is not None:
            return cpu.CpuExecutor(plan, self._packed, self.outer)
        return PlainExecutor(plan, self.tensors, self.outer, self.device)

    def check_unchanged(self, what: str) -> None:
        """Hold that `what` would be made of the weights that answers are.

        Raises:
            InputError: it would not.
        """
        if _state(self.tensors) != self._state:
            raise InputError(
                f"Engine: {what}, and the model's weights changed since this engine read them; call engine.refresh() "
                "first."
            )

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over new values.

        Raises:
            InputError: tensors of other names or shapes; nothing is changed then.
        """
        for name, old in self.tensors.items():
            if name not in tensors or tensors[name].shape != old.shape:
                raise InputError(
                    f"Engine.refresh: {name} is gone or has another shape than before; a changed network needs an "
                    "engine of its own: call optimize_for_inference again."
                )
        self.tensors, self._state = tensors, _state(tensors)
        if self._packed is not None:
            self._packed.refresh(tensors)


def _state(tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """What changes when tensors are replaced or written to."""
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors.values()]


class PlainExecutor:
    """The interpreter as an executor: for dtypes and machines that no other serves."""

    def __init__(self, plan: Plan, tensors: Mapping[str, Tensor], outer: torch.dtype, device: torch.device) -> None:
        self.plan, self._outer, self._device = plan, outer, device
        self.refresh(tensors)

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        self._interpreter = Interpreter(self.plan, tensors, self.plan.dtype, self._device, self._outer)

    def __call__(self, x: Tensor, copy: bool = True) -> Any:
        return self._interpreter(x)

    def profile(self, x: Tensor) -> list[tuple[int, float]]:
        times: list[tuple[int, float]] = []
        self._interpreter(x, times)
        return times

    def describe(self) -> list[str]:
        why = "the compiled extension is not there" if not cpu.available() else f"no kernels for {self.plan.dtype}"
        return [f"PyTorch's operators one by one: {why} on {self._device}"]
