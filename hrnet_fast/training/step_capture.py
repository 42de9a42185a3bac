"""Captures of a training step on a CUDA device, behind a small interface that tests implement without one."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from hrnet_fast.graph_capture import GraphMemory, capture_graph, capture_lock, graph_memory
from hrnet_fast.training.branch_streams import parallel_branches
from hrnet_fast.training.pytrees import map_tensors


class StepCapturer(Protocol):
    """Runs a step eagerly as it will be captured, and captures it."""

    def refusal(self) -> str | None:
        """Say why nothing can be captured here, or None."""

    def here(self) -> contextlib.AbstractContextManager[Any]:
        """Make the device the current one."""

    def eager(self, run: Callable[[], Any]) -> Any:
        """Run so that a later capture finds what it needs."""

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Return the function that replays `run`, and what `run` returned, which each replay overwrites."""

    def given(self, tensor: Tensor) -> Tensor:
        """Return a copy of a replay's result for the caller."""


class CudaCapturer:
    """Captures on one CUDA device.

    Eager calls and captures share one stream beside the caller's. Autograd's accumulators of gradients keep the stream
    they were made on, and libraries their workspaces; a capture may not meet the default stream's.

    Args:
        device: the model's.
        branch_streams: whether the branches of accelerated modules run on parallel streams.
        stream: the stream of eager calls and captures; a new one if None.
    """

    def __init__(self, device: torch.device, branch_streams: bool, stream: torch.cuda.Stream | None = None) -> None:
        self._device, self._branch_streams, self._stream = device, branch_streams, stream
        self._memory: GraphMemory | None = None
        self._last: torch.cuda.Stream | None = None

    def refusal(self) -> str | None:
        if self._device.type != "cuda":
            return f"the model is on {self._device.type}; CUDA graphs need a CUDA device"
        if torch.version.cuda is None:
            return "this PyTorch is not built for CUDA"
        if torch.cuda.is_current_stream_capturing():
            return "the caller captures a graph itself"
        return None

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        if self._device.type != "cuda":
            yield
            return
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            if self._last is not None and self._last != current:
                current.wait_stream(self._last)  # graphs share memory: they run one after the other
            self._last = current
            yield

    def eager(self, run: Callable[[], Any]) -> Any:
        current, own = torch.cuda.current_stream(), self._own_memory().stream
        own.wait_stream(current)
        with torch.cuda.stream(own):
            result = run()
        current.wait_stream(own)
        # The caller frees it at a time that the own stream does not know.
        map_tensors(lambda t: t.record_stream(current) if t.is_cuda else None, result)
        return result

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        memory, made = self._own_memory(), list[Any]()

        def body() -> None:
            with parallel_branches() if self._branch_streams else contextlib.nullcontext():
                made.append(run())

        gc.collect()  # cycles may hold tensors of eager calls
        with capture_lock, _without_collection():
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()  # what eager calls used is free for the graph's memory
            graph = capture_graph(body, self._device, memory.stream, memory.handle)
        return graph.replay, made[0]

    def given(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def _own_memory(self) -> GraphMemory:
        if self._memory is None:
            self._memory = graph_memory(self._device, self._stream)
        return self._memory


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Let Python collect no cycles: one that holds a graph would destroy it, which CUDA refuses in a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def failure_text(error: Exception) -> str:
    """Return what a capture raised, and the last line of it that is neither PyTorch's nor this package's."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(f"{os.sep}{name}{os.sep}" in f.filename for name in ("torch", "hrnet_fast"))]
    place = f" at {os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else ""
    hint = "; a value is read on the host (item(), bool(), boolean indices)" if "captur" in text else ""
    return f"{type(error).__name__}: {text}{place}{hint}"
