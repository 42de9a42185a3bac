"""Captures of CUDA graphs, and the streams and memory that they share; used by engines and training steps."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

capture_lock = threading.RLock()  # PyTorch allows one capture at a time in a process


class GraphMemory(NamedTuple):
    """Device memory of captured graphs.

    Attributes:
        stream: the stream of all captures: memory is reused on the same stream only.
        handle: PyTorch's.
        anchor: a trivial graph, as PyTorch refuses captures into memory whose last graph was freed.
    """

    stream: torch.cuda.Stream
    handle: Any
    anchor: torch.cuda.CUDAGraph


def graph_memory(device: torch.device, stream: torch.cuda.Stream | None = None) -> GraphMemory:
    """Return new memory for graphs, captured on `stream` or on a new one."""
    stream, handle = stream or new_stream(device), torch.cuda.graph_pool_handle()
    anchor = capture_graph(lambda: torch.zeros(1, device=device), device, stream, handle)
    return GraphMemory(stream, handle, anchor)


def capture_graph(
    run: Callable[[], Any], device: torch.device, stream: torch.cuda.Stream, pool: Any
) -> torch.cuda.CUDAGraph:
    """Return a graph of `run`, captured on `stream`.

    ``torch.cuda.graph`` is not used: it leaves the capture's stream current where a capture fails, captures on one
    device's stream for all devices, and empties the allocator's cache at each of the hundreds of captures of tuning.
    """
    graph = torch.cuda.CUDAGraph()
    with capture_lock:
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream):
            try:
                # Other threads may make calls that are illegal under a capture.
                graph.capture_begin(pool, capture_error_mode="thread_local")
                run()
                graph.capture_end()
            except BaseException:  # an interrupt, too, must not leave the stream in a capture
                if torch.cuda.is_current_stream_capturing():  # after a failed end, too
                    with contextlib.suppress(Exception):  # ending a broken capture raises a less specific error
                        graph.capture_end()
                _stop_allocating(device, pool)
                _end_random_numbers(device)
                raise
    return graph


def _stop_allocating(device: torch.device, pool: Any) -> None:
    """Tell the allocator that a broken capture is over, which PyTorch before 2.12 does not.

    It would go on to hold back memory that several streams used.
    """
    stop = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if stop is not None:
        with contextlib.suppress(Exception):  # newer versions have done it
            stop(device.index, pool)


def _end_random_numbers(device: torch.device) -> None:
    """Tell the device's random generator that a broken capture is over, which PyTorch before 2.12 does not.

    It would refuse the next dropout. A capture that succeeds leaves the generator as it should be.
    """
    graph = torch.cuda.CUDAGraph()
    with contextlib.suppress(Exception):
        graph.capture_begin(torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
        try:
            torch.zeros(1, device=device)
        finally:
            graph.capture_end()


def side_streams(device: torch.device, main: torch.cuda.Stream, count: int) -> tuple[torch.cuda.Stream, ...]:
    """Return `count` streams beside `main`, the same ones at every call.

    Memory of one capture is reused by the next only on the same stream.
    """
    # One more than needed: PyTorch reuses a few streams, and `main` may be among them.
    others = [stream for stream in _streams(device, count + 1) if stream != main]
    return tuple(others[:count])


@functools.cache
def _streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    return tuple(new_stream(device) for _ in range(count))


def new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def new_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
