"""Graphs, streams and events of CUDA, as little of them as an executor needs; tests put a stand-in in their place."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from hrnet_fast.flags import ProcessFlag
from hrnet_fast.inference.execution.stream_schedule import Schedule

WARM_UPS = 2  # runs before a capture: libraries choose algorithms, kernels are compiled and loaded


class CapturedGraph(Protocol):
    """A captured run."""

    def replay(self) -> None:
        """Do it all again, on the current stream."""


class Around(Protocol):
    """What units run in: :attr:`TorchExecutor.run`'s ``around``, and the end of it."""

    def __call__(self, unit: int) -> contextlib.AbstractContextManager[None]:
        """Return what a unit runs in."""

    def join(self) -> None:
        """Let the stream that all began on wait for all."""


class Device(Protocol):
    """What an executor asks of its device."""

    def here(self) -> contextlib.AbstractContextManager[None]:
        """Make this the current device."""

    def settings(self) -> contextlib.AbstractContextManager[None]:
        """What the library's choice of algorithms runs under, at warm-up and capture alike."""

    def warm_up(self, run: Callable[[], Any]) -> None:
        """Run a few times, beside the current stream; everything is over when it returns."""

    def capture(self, run: Callable[[], Any], pool: Any) -> tuple[CapturedGraph, Any]:
        """Return a graph of `run` with its memory in `pool`, and what it returned."""

    def pool(self) -> Any:
        """Return a new memory pool for graphs."""

    def lanes(self, schedule: Schedule) -> Around:
        """Return the streams of a schedule, forked from the current one."""

    def after(self, mark: Any) -> None:
        """Let the current stream wait for a mark; None is no mark."""

    def mark(self) -> Any:
        """Return a mark of all work on the current stream so far."""

    def capturing(self) -> bool:
        """Whether somebody captures the current stream."""


class GraphPool:
    """Memory that graphs of several input shapes share, one of which runs at a time.

    Attributes:
        lock: held while a graph is captured or launched.
        mark: end of the last run, which the next one waits for on the device.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.mark: Any = None
        self._memory: Any = None
        self._arena: Tensor | None = None

    def memory(self, device: Device) -> Any:
        """Return the memory pool, made at the first call."""
        if self._memory is None:
            self._memory = device.pool()
        return self._memory

    def arena(self, size: int, device: torch.device) -> Tensor:
        """Return `size` bytes for maps: of those that others have already, where these are enough."""
        if self._arena is None or self._arena.numel() < size:
            self._arena = torch.empty(size, dtype=torch.uint8, device=device)  # older graphs keep what they have
        return self._arena[:size]


class CudaDevice:
    """A CUDA device as :class:`Device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        with torch.cuda.device(self._device):
            yield

    def settings(self) -> contextlib.AbstractContextManager[None]:
        """cuDNN's search for the fastest algorithm, everything else of it as the user has it.

        The search happens at warm-up; the capture finds its results, as it runs the same shapes under the same flags.
        """
        deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
        return _search.held(not deterministic)

    def warm_up(self, run: Callable[[], Any]) -> None:
        with _one_capture:  # lanes are everybody's: while another engine captures on them, no work may get there
            self._warm_up(run)

    def _warm_up(self, run: Callable[[], Any]) -> None:
        side = _stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
                # Maps go back to the allocator at the next run, while other streams might still read them.
                torch.cuda.synchronize(self._device)
        torch.cuda.current_stream(self._device).wait_stream(side)

    def capture(self, run: Callable[[], Any], pool: Any) -> tuple[CapturedGraph, Any]:
        graph, made = torch.cuda.CUDAGraph(), []
        _capture(graph, lambda: made.append(run()), self._device, *pool)
        return graph, made[0]

    def pool(self) -> Any:
        # Graphs that share memory are to be captured on one stream.
        return _stream(self._device), torch.cuda.graph_pool_handle()

    def lanes(self, schedule: Schedule) -> Around:
        return _Streams(schedule, self._device)

    def after(self, mark: Any) -> None:
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def mark(self) -> Any:
        event = _event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()


class _Streams:
    """A schedule's streams and events."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        self._schedule = schedule
        main = torch.cuda.current_stream(device)
        # One more than needed: PyTorch hands out a few streams in turn, and `main` may be among them.
        others = [stream for stream in _lane_streams(device, schedule.count) if stream != main]
        self._streams = [main, *others[: schedule.count - 1]]
        begin = _event()
        begin.record(main)
        for stream in self._streams[1:]:  # also makes them part of a capture
            stream.wait_event(begin)
        self._events: dict[int, torch.cuda.Event] = {}

    @contextlib.contextmanager
    def __call__(self, unit: int) -> Iterator[None]:
        stream = self._streams[self._schedule.lanes[unit]]
        for other in self._schedule.waits[unit]:
            stream.wait_event(self._events[other])
        with torch.cuda.stream(stream):
            yield
        if unit in self._schedule.signals:
            self._events[unit] = _event()
            self._events[unit].record(stream)

    def join(self) -> None:
        for unit in self._schedule.joins:
            self._streams[0].wait_event(self._events[unit])


@functools.cache
def _lane_streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    """Streams of all lanes on a device: memory that one capture leaves is the next one's on the same stream alone."""
    return tuple(_stream(device) for _ in range(count))


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def settle(device: torch.device) -> None:
    """Wait for all of a device's work; not while somebody captures there, which that would break."""
    with _one_capture:
        torch.cuda.synchronize(device)


def graphed(device: torch.device, call: Callable[[], Any], calls: int = 16) -> Callable[[], None]:
    """Return the replay of a graph of several of a call, for timing."""
    cuda, graph = CudaDevice(device), torch.cuda.CUDAGraph()

    def several() -> None:
        for _ in range(calls):
            call()

    with cuda.here(), cuda.settings():
        cuda.warm_up(call)
        _capture(graph, several, device, *cuda.pool())
    return graph.replay


_one_capture = threading.RLock()  # PyTorch allows one at a time in a process

# Only this flag: torch.backends.cudnn.flags() would write all of them, one of which newer versions refuse.
_search = ProcessFlag(
    lambda: torch.backends.cudnn.benchmark, lambda value: setattr(torch.backends.cudnn, "benchmark", value)
)


def _capture(
    graph: torch.cuda.CUDAGraph, run: Callable[[], None], device: torch.device, stream: torch.cuda.Stream, pool: Any
) -> None:
    """Capture `run`. Whatever happens, the current stream is afterwards what it was.

    ``torch.cuda.graph`` leaves the capture's stream current where a capture fails, captures on one device's stream for
    all devices, and empties the allocator's cache each time, of which there are hundreds when ways are timed.
    """
    with _one_capture:
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream):
            # Other threads go on with their work: only this one's calls are to be fit for a capture.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                run()
            except Exception:
                with contextlib.suppress(Exception):  # ending a broken capture fails as well, and tells less
                    graph.capture_end()
                _stop_allocating(device, pool)
                raise
            graph.capture_end()


def _stop_allocating(device: torch.device, pool: Any) -> None:
    """Undo what a broken capture leaves where ending it raised early (before PyTorch 2.12): an allocator that believes
    a capture is under way, and holds back memory that several streams used until it is over.
    """
    stop = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if stop is not None:
        with contextlib.suppress(Exception):  # it was stopped already
            stop(device.index, pool)
