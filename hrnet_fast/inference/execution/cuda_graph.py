"""CUDA graphs, streams and events behind a small interface, which tests implement without a device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hrnet_fast.graph_capture import (
    GraphMemory,
    capture_graph,
    capture_lock,
    graph_memory,
    new_event,
    new_stream,
    side_streams,
)
from hrnet_fast.inference.execution.cudnn_search import cudnn_search
from hrnet_fast.inference.execution.stream_schedule import StreamSchedule

if TYPE_CHECKING:
    from hrnet_fast.inference.execution.torch_executor import StreamFork

WARM_UPS = 2  # runs before a capture: libraries choose algorithms, kernels are compiled and loaded


class CapturedGraph(Protocol):
    """A captured run."""

    def replay(self) -> None:
        """Launch the graph on the current stream."""


class GraphPool:
    """Memory that graphs of several input shapes share. They run one at a time.

    Attributes:
        lock: held while a graph is captured or launched.
        mark: end of the last run, which the next run waits for on the device.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.mark: Any = None
        self._memory: GraphMemory | None = None
        self._arena: Tensor | None = None

    def memory(self, device: CudaDevice) -> GraphMemory:
        """Return the graphs' memory, made at the first call."""
        if self._memory is None:
            self._memory = device.memory()
        return self._memory

    def arena(self, size: int, device: torch.device) -> Tensor:
        """Return `size` bytes for maps, which are shared by all executors of the pool."""
        if self._arena is None or self._arena.numel() < size:
            self._arena = torch.empty(size, dtype=torch.uint8, device=device)  # older graphs keep the smaller one
        return self._arena[:size]


class CudaDevice:
    """Graphs, streams and events of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # PyTorch's functions read a number faster than a device.
        self._number = device if device.index is None else device.index

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Make this the current device."""
        with torch.cuda.device(self._number):
            yield

    def warm_up(self, run: Callable[[], Any]) -> None:
        """Run a few times on a stream beside the current one, and wait for the end.

        cuDNN searches for algorithms meanwhile, which a capture by the same thread uses.
        """
        with capture_lock:  # all engines share the side streams, and another one may be capturing on them
            self._warm_up(run)

    def _warm_up(self, run: Callable[[], Any]) -> None:
        side = new_stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for number in range(WARM_UPS):
                with cudnn_search() if number == 0 else contextlib.nullcontext():
                    run()
                # The next run frees adopted maps, which other streams may still read.
                torch.cuda.synchronize(self._device)
        torch.cuda.current_stream(self._device).wait_stream(side)

    def capture(self, run: Callable[[], Any], memory: GraphMemory) -> tuple[CapturedGraph, Any]:
        """Return a graph of `run` with its tensors in `memory`, and what it returned."""
        made: list[Any] = []
        graph = capture_graph(lambda: made.append(run()), self._device, memory.stream, memory.handle)
        return graph, made[0]

    def memory(self) -> GraphMemory:
        """Return new memory for graphs."""
        return graph_memory(self._device)

    def fork(self, schedule: StreamSchedule) -> StreamFork:
        """Return the streams of a schedule, forked from the current one."""
        return _CudaStreamFork(schedule, self._device)

    def after(self, mark: Any) -> None:
        """Let the current stream wait for a mark; None is no mark."""
        if mark is not None:
            torch.cuda.current_stream(self._number).wait_event(mark)

    def mark(self) -> Any:
        """Return a mark behind all work on the current stream so far."""
        event = new_event()
        event.record(torch.cuda.current_stream(self._number))
        return event

    def capturing(self) -> bool:
        """Whether the current stream is being captured."""
        return torch.cuda.is_current_stream_capturing()


class _CudaStreamFork:
    """The streams and events of a schedule."""

    def __init__(self, schedule: StreamSchedule, device: torch.device) -> None:
        self._schedule = schedule
        main = torch.cuda.current_stream(device)
        self._streams = [main, *side_streams(device, main, schedule.count - 1)]
        begin = new_event()
        begin.record(main)
        for stream in self._streams[1:]:  # also makes them part of a capture
            stream.wait_event(begin)
        self._events: dict[int, torch.cuda.Event] = {}

    @contextlib.contextmanager
    def __call__(self, group: int) -> Iterator[None]:
        stream = self._streams[self._schedule.streams[group]]
        for other in self._schedule.waits[group]:
            stream.wait_event(self._events[other])
        with torch.cuda.stream(stream):
            yield
        if group in self._schedule.signals:
            self._events[group] = new_event()
            self._events[group].record(stream)

    def join(self) -> None:
        for group in self._schedule.joins:
            self._streams[0].wait_event(self._events[group])


def settle(device: torch.device) -> None:
    """Wait for all work of a device, at a time when nothing is captured, as that would break a capture."""
    with capture_lock:
        torch.cuda.synchronize(device)


def graphed(device: torch.device, call: Callable[[], Any], calls: int = 16) -> Callable[[], None]:
    """Return the replay of a graph of several calls, for timing."""
    cuda = CudaDevice(device)

    def several() -> None:
        for _ in range(calls):
            call()

    with cuda.here():
        cuda.warm_up(call)
        return capture_graph(several, device, new_stream(device), torch.cuda.graph_pool_handle()).replay
