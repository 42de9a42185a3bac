"""The layer on CUDA's graphs, streams and events, with stand-ins for them: what is called, in which order.

What only a device can show is in test_cuda_executor.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hrnet_fast import graph_capture
from hrnet_fast.inference.execution import cuda_graph, cudnn_search
from hrnet_fast.inference.execution.cuda_graph import CudaDevice, graphed
from hrnet_fast.inference.execution.stream_schedule import StreamSchedule

CPU = torch.device("cpu")


class Runtime:
    """As much of ``torch.cuda`` as the layer uses; work on streams is logged as (stream, what)."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, Any]] = []
        self.current: Any = self.new("user")
        self.captures: list[Any] = []
        self.fails = False

    def new(self, name: str) -> Any:
        stream = SimpleNamespace(name=name)
        stream.wait_event = lambda event: self.log.append((stream, ("wait", event.name)))
        stream.wait_stream = lambda other: self.log.append((stream, ("wait", other.name)))
        return stream

    def event(self) -> Any:
        event = SimpleNamespace(name=object())
        event.record = lambda stream: self.log.append((stream, ("record", event.name)))
        return event

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph(self) -> Any:
        def begin(pool: Any, capture_error_mode: str) -> None:
            assert not self.captures, "one at a time"
            assert capture_error_mode == "thread_local"
            assert pool == "memory"
            self.captures.append(self.current)

        def end() -> None:
            assert self.captures.pop() is self.current
            if self.fails:
                raise RuntimeError("capture was invalidated")

        return SimpleNamespace(capture_begin=begin, capture_end=end, replay=lambda: self.log.append((None, "replay")))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    graph_capture._streams.cache_clear()
    for module in (graph_capture, cuda_graph):
        monkeypatch.setattr(module, "new_stream", lambda device: runtime.new("side"))
        monkeypatch.setattr(module, "new_event", runtime.event)
    for name, value in {
        "stream": runtime.stream,
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda device: runtime.current,
        "synchronize": lambda device: runtime.log.append((None, "synchronize")),
        "CUDAGraph": runtime.graph,
        "graph_pool_handle": lambda: "memory",
        "is_current_stream_capturing": lambda: bool(runtime.captures),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return runtime


def test_streams_fork_wait_and_join(cuda: Runtime) -> None:
    """Groups 0 and 2 on the current stream, 1 and 3 on another; 2 needs 1, 3 needs 2."""
    made = StreamSchedule((0, 1, 0, 1), ((), (0,), (1,), (2,)), frozenset({0, 1, 2, 3}), (3,))
    streams = CudaDevice(CPU).fork(made)
    for group in range(4):
        with streams(group):
            cuda.log.append((cuda.current, group))
    streams.join()
    main = cuda.current
    work = [(stream is main, what) for stream, what in cuda.log]
    events = [what[1] for _, what in work if isinstance(what, tuple) and what[0] == "record"]
    begin, *ends = events
    assert work == [
        (True, ("record", begin)), (False, ("wait", begin)),
        (True, 0), (True, ("record", ends[0])),
        (False, ("wait", ends[0])), (False, 1), (False, ("record", ends[1])),
        (True, ("wait", ends[1])), (True, 2), (True, ("record", ends[2])),
        (False, ("wait", ends[2])), (False, 3), (False, ("record", ends[3])),
        (True, ("wait", ends[3])),
    ]  # fmt: skip
    assert CudaDevice(CPU).fork(made)._streams[1] is streams._streams[1]  # its memory is found again


def test_a_side_stream_is_never_the_current_one(cuda: Runtime) -> None:
    made = StreamSchedule((0, 1, 2), ((), (), ()), frozenset({1, 2}), (1, 2))
    first = CudaDevice(CPU).fork(made)
    with cuda.stream(first._streams[1]):
        again = CudaDevice(CPU).fork(made)
    assert len({id(stream) for stream in again._streams}) == 3


def test_cuda_graph(cuda: Runtime) -> None:
    device = CudaDevice(CPU)
    user, memory = cuda.current, device.memory()
    graph, made = device.capture(lambda: (cuda.current, device.capturing()), memory)
    assert made == (memory.stream, True)
    assert cuda.current is user
    assert not device.capturing()
    graph.replay()
    assert cuda.log[-1] == (None, "replay")


@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_capture_leaves_no_trace(cuda: Runtime, fails: bool) -> None:
    device, user = CudaDevice(CPU), cuda.current
    memory, cuda.fails = device.memory(), fails
    with pytest.raises(ZeroDivisionError):  # the first reason, not what ending the capture says
        device.capture(lambda: 1 / 0, memory)
    assert cuda.current is user
    cuda.fails = False
    assert device.capture(lambda: 3, device.memory())[1] == 3


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_warm_up_searches_and_sets_no_flag(
    cuda: Runtime, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """The search runs each convolution once more, and not where the user asks for deterministic results."""
    searched: list[Any] = []
    monkeypatch.setattr(torch._C, "_select_conv_backend", lambda *given: torch._C._ConvBackend.Cudnn)
    monkeypatch.setattr(torch._C, "_conv_determine_backend_memory_format", lambda *given: torch.channels_last)
    search = SimpleNamespace(convolution=torch.ops.aten.convolution, cudnn_convolution=lambda *a: searched.append(a))
    monkeypatch.setattr(cudnn_search, "_aten", search)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    x, weight, flags = torch.zeros(1, 4, 8, 8), torch.zeros(6, 2, 3, 3), []

    def run() -> None:
        torch.nn.functional.conv2d(x, weight, stride=2, padding=1, groups=2)
        flags.append(torch.backends.cudnn.benchmark)

    CudaDevice(CPU).warm_up(run)
    assert flags == [False] * cuda_graph.WARM_UPS
    assert [given[2:8] for given in searched] == [] if deterministic else [([1, 1], [2, 2], [1, 1], 2, True, False)]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for given in searched for t in given[:2])


def test_marks_and_warm_up(cuda: Runtime) -> None:
    device, user, seen = CudaDevice(CPU), cuda.current, []
    device.after(None)
    device.after(device.mark())
    assert [what[0] for _, what in cuda.log] == ["record", "wait"]
    device.warm_up(lambda: seen.append(cuda.current))
    assert len(seen) == cuda_graph.WARM_UPS
    assert all(stream is not user for stream in seen)
    assert cuda.log[-1] == (user, ("wait", "side"))


def test_no_work_gets_on_streams_that_are_captured(cuda: Runtime) -> None:
    device, order = CudaDevice(CPU), []
    other = threading.Thread(target=lambda: device.warm_up(lambda: order.append("warm-up")))

    def captured() -> None:
        other.start()
        other.join(0.2)
        order.append("captured")

    device.capture(captured, device.memory())
    other.join()
    assert order == ["captured", *["warm-up"] * cuda_graph.WARM_UPS]


def test_a_broken_capture_ends_for_the_allocator_too(cuda: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[Any] = []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *which: stopped.append(which), raising=False)
    device = CudaDevice(CPU)
    memory = device.memory()
    with pytest.raises(ZeroDivisionError):
        device.capture(lambda: 1 / 0, memory)
    assert stopped == [(CPU.index, "memory")]
    device.capture(lambda: 1, device.memory())
    assert len(stopped) == 1


def test_what_is_timed_is_a_graph_of_several(cuda: Runtime) -> None:
    calls: list[int] = []
    replay = graphed(CPU, lambda: calls.append(1), 4)
    assert len(calls) == cuda_graph.WARM_UPS + 4
    replay()
    assert len(calls) == cuda_graph.WARM_UPS + 4
