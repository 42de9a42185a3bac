"""The choice of an executor for a plan, and the weights that executors of all input shapes share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.inference.execution import cpu_executor
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.cuda_executor import CudaExecutor
from hrnet_fast.inference.execution.cuda_graph import GraphPool, settle
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.execution.weight_store import WeightStore
from hrnet_fast.inference.plan import Plan

TUNING_SECONDS = 2.0  # for all convolutions of an engine; later engines find the results in the cache


Executor = cpu_executor.CpuExecutor | TorchExecutor | CudaExecutor


class _State:
    """Addresses and sums of bits of all weights, as version counters do not see writes through ``.data``.

    Sums stay on their device.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._addresses = [t.data_ptr() for t in tensors.values()]
        sums: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors.values():
            if not tensor.is_meta:
                sums.setdefault(tensor.device, []).append(_bits(tensor).sum(dtype=torch.int64))
        self._sums = {device: torch.stack(own) for device, own in sums.items()}

    def equals(self, other: _State) -> bool:
        """Compare, with one transfer from each device to the host."""
        if self._addresses != other._addresses or self._sums.keys() != other._sums.keys():
            return False
        return not any((self._sums[device] - other._sums[device]).any().item() for device in self._sums)


class ExecutorFactory:
    """Makes executors of one dtype and device from one set of weights."""

    def __init__(
        self, dtype: torch.dtype, outer: torch.dtype, device: torch.device, tensors: Mapping[str, Tensor]
    ) -> None:
        self.dtype, self.outer, self.device = dtype, outer, device
        self.tensors = tensors
        self._state: _State | None = _State(tensors)
        self._packed = (
            cpu_executor.PackedWeights(dtype, tensors) if device.type == "cpu" and cpu_executor.wins(dtype) else None
        )
        if self._packed is None:
            self._weights = WeightStore(tensors, dtype, device)
            self._autotuner = Autotuner(device, dtype, budget=TUNING_SECONDS)
            self._pool = GraphPool()

    def make(self, plan: Plan) -> Executor:
        """Return an executor for `plan`. Weights must be those that were read (:meth:`check_unchanged`)."""
        if self._packed is not None:
            return cpu_executor.CpuExecutor(plan, self._packed, self.outer)
        shared = {"outer": self.outer, "weights": self._weights, "autotuner": self._autotuner}
        if self.device.type == "cuda":
            return CudaExecutor(plan, self.tensors, self.device, pool=self._pool, ready=False, **shared)  # type: ignore[arg-type]
        return TorchExecutor(plan, self.tensors, self.device, **shared)  # type: ignore[arg-type]

    def retire(self, executor: Executor) -> None:
        """Wait for the work of an executor before its memory is freed."""
        if self.device.type == "cuda":
            settle(self.device)

    def check_unchanged(self, what: str, present: Mapping[str, Tensor]) -> None:
        """Check that the source's `present` weights are those that executors use, before `what` is made of them.

        Raises:
            InputError: they changed; or a CUDA graph is being captured, when they cannot be read.
        """
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise InputError(f"Engine: {what} while a CUDA graph is captured; call engine.prepare(shape) before that.")
        if self._state is None or not _State(present).equals(self._state):
            raise InputError(
                f"Engine: {what}, and the model's weights changed since this engine read them; call engine.refresh() "
                "first."
            )

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Check that `tensors` can replace the weights.

        Raises:
            InputError: their names or shapes are others, or one has no data.
        """
        for name, old in self.tensors.items():
            if name not in tensors or tensors[name].shape != old.shape:
                raise InputError(
                    f"Engine.refresh: {name} is gone or has another shape than before; a changed network needs an "
                    "engine of its own: call optimize_for_inference again."
                )
            if tensors[name].is_meta:
                raise InputError(f"Engine.refresh: {name} has no data; load the weights before.")

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the weights that executors share. Each executor has to be refreshed after that.

        Raises:
            InputError: as :meth:`check_tensors`; the old weights stay.
        """
        self.check_tensors(tensors)
        state, self._state = _State(tensors), None  # until all is replaced, no weights pass check_unchanged
        (self._packed or self._weights).refresh(tensors)
        self.tensors, self._state = tensors, state


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor's memory as integers."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(kinds[tensor.element_size()])
