"""Measures a call: seconds in interleaved rounds, operator calls, live memory, and the error of its result."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Call = Callable[[], Any]
# Bytes written before a timed call on a GPU, so that its cache holds nothing of the call before.
CACHE_BYTES = 256 << 20


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that compute (views and allocations do not) and tracks the storages that they allocate.

    A result is new unless it shares an argument's storage, as a view of a weight and a buffer changed in place do.
    """

    FREE = ("aten.empty", "aten.detach", "aten.view", "aten.alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = 0
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The storage of a constant is made for the call, although the dispatcher sees it as an argument.
        given = () if str(func).startswith("aten.lift") else tree_leaves((args, kwargs))
        old = {leaf.untyped_storage()._cdata for leaf in given if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        if not (func.is_view or str(func).startswith(self.FREE)):
            self.calls += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._track(leaf, old)
        return out

    def _track(self, tensor: Tensor, old: set[int]) -> None:
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


def operator_calls(call: Call) -> int:
    """Return how many computing operators `call` dispatches: on a GPU, about as many kernel launches."""
    watcher = _Watcher()
    with watcher:
        call()
    return watcher.calls


def peak_activations(call: Call) -> int:
    """Return the most bytes of tensors made by `call` that were alive at once (weights and workspaces left out)."""
    watcher = _Watcher()
    with watcher:
        call()
    return watcher.peak


def saved_bytes(call: Call, parameters: Iterable[Tensor] = ()) -> int:
    """Return how many bytes of tensors the graph that `call` returns keeps for its backward, each storage once.

    Weights are no activations: those in `parameters` are left out. Copies in another dtype count.
    """
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def wall_seconds(call: Call, device: torch.device) -> float:
    """Return the wall-clock seconds of a call, with the device's pending work done before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class InterleavedTimer:
    """Times calls in rounds, each of which runs every call once.

    A machine whose speed drifts then slows all calls alike. Each round starts with the next call, so that none always
    follows the same other. CUDA devices are timed by events, with a cold cache.

    Attributes:
        times: seconds of each call, one per round.
    """

    def __init__(self, calls: Mapping[str, Call], device: torch.device) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in calls}
        self._calls = dict(calls)
        self._device = device
        self._rounds = 0
        if device.type == "cuda":
            self._cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)

    def round(self) -> None:
        """Run and time every call once."""
        names = list(self._calls)
        first = self._rounds % len(names)
        for name in names[first:] + names[:first]:
            self.times[name].append(self._seconds(self._calls[name]))
        self._rounds += 1

    def _seconds(self, call: Call) -> float:
        if self._device.type != "cuda":
            return wall_seconds(call, self._device)
        self._cache.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self._device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(self._device)
        return float(begin.elapsed_time(end)) / 1e3


def error_limit(reference_error: float, dtype: torch.dtype, roundings: int = 1) -> float:
    """Return the largest relative error that is accepted: twice the reference's in the same dtype, and `roundings`."""
    return 2 * reference_error + roundings * 2.0 ** (-8 if dtype in (torch.float16, torch.bfloat16) else -22)


def relative_error(output: Any, exact: Any) -> float:
    """Return the largest relative L2 distance between corresponding tensors of two outputs."""
    errors: list[float] = []
    for a, b in zip(tree_leaves(output), tree_leaves(exact), strict=True):
        norm = b.double().norm().item()
        difference = (a.double() - b.double()).norm().item()
        errors.append(difference / norm if norm else difference)
    return max(errors)
