"""What a call costs: multiply-adds, operator calls, live memory and time. Shared by tables, demo and benchmarks."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.config import HRNetConfig
from hrnet_fast.reference import HRNetReference


def complexity(config: HRNetConfig, input_size: tuple[int, int]) -> tuple[int, float]:
    """Return (parameters, GFLOPs) of a network for one image of (H, W), without allocating it.

    GFLOPs are the paper's: multiply-adds of convolutions, linear layers and matrix products, divided by 2^30.
    """
    with torch.device("meta"), torch.no_grad():
        model = HRNetReference(config).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, config.in_channels, *input_size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2 / 2**30


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that compute (views and allocations do not) and follows the storages they make.

    An operator's result is new unless it shares an argument's storage: a view of a weight and a buffer changed in place
    were there before the call.
    """

    FREE = ("aten.empty", "aten.detach", "aten.view", "aten.alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A constant's storage is made for the call, and reaches the dispatcher as this operator's argument.
        given = () if str(func).startswith("aten.lift") else tree_leaves((args, kwargs))
        old = {leaf.untyped_storage()._cdata for leaf in given if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or str(func).startswith(self.FREE)):
            self.calls += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf, old)
        return out

    def _follow(self, tensor: Tensor, old: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in old or key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def operator_calls(call: Callable[[], Any]) -> int:
    """Return how many computing operators `call` dispatches: on a GPU, about as many kernel launches."""
    watcher = _Watcher()
    with watcher:
        call()
    return watcher.calls


def peak_activations(call: Callable[[], Any]) -> int:
    """Return the most bytes of tensors made by `call` that were alive at once (weights and workspaces left out)."""
    watcher = _Watcher()
    with watcher:
        call()
    return watcher.peak


def saved_bytes(call: Callable[[], Any], parameters: Iterable[Tensor] = ()) -> int:
    """Return how many bytes of tensors the graph that `call` returns keeps for its backward, each storage once.

    Weights are no activations: those in `parameters` are left out. Copies of them in another dtype count.
    """
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def interleaved_seconds(calls: Mapping[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1) -> dict[str, float]:
    """Return each call's median wall-clock seconds over rounds in which all take turns.

    Taking turns lets a machine whose speed drifts slow all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            _synchronize()
            start = time.perf_counter()
            call()
            _synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def relative_error(output: Any, exact: Any) -> float:
    """Return the largest relative L2 distance between corresponding tensors of two outputs."""
    errors: list[float] = []
    for a, b in zip(tree_leaves(output), tree_leaves(exact), strict=True):
        norm = b.double().norm().item()
        difference = (a.double() - b.double()).norm().item()
        errors.append(difference / norm if norm else difference)
    return max(errors)
