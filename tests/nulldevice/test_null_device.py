"""The null device follows CUDA's rules: what it refuses, what it counts, what it cannot do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import device_counters
import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.nulldevice


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).cuda()


def captured(function: Callable[[], Any], mode: str = "global") -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode=mode):
        function()
    return graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_copies_keep_data(dtype: torch.dtype) -> None:
    host = torch.randint(0, 2, (5, 7, 3)).to(dtype)
    device = host.cuda()
    assert torch.equal(device.cpu(), host)
    assert torch.equal(device.clone().cpu(), host)
    assert torch.equal(host.pin_memory().to("cuda", non_blocking=True).cpu(), host)
    assert device.flatten()[0].item() == 0, "what the host decides on is zero"


def test_kernels_are_counted_and_not_run() -> None:
    x = torch.ones(1000).cuda()
    with device_counters.counting() as n:
        x.add_(1)
    assert (n.launches, n.errors, n.synchronizations) == (1, 0, 0)
    assert x.cpu().unique().tolist() == [1.0]
    device_counters.reset()
    network()(torch.zeros(1, 3, 16, 16).cuda())
    assert device_counters.kernels()["cudnnBackendExecute"] == 2


@pytest.mark.slow
def test_the_host_cannot_touch_device_memory() -> None:
    code = "import torch, ctypes; x = torch.ones(4).cuda(); ctypes.c_float.from_address(x.data_ptr()).value"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -11


def test_a_captured_copy_runs_at_the_replay() -> None:
    x, out = torch.zeros(8).cuda(), torch.zeros(8).cuda()
    graph = captured(lambda: out.copy_(x.add_(1)))
    assert device_counters.counters().last_graph_kernels == 1
    x.copy_(torch.full((8,), 3.0))
    with device_counters.counting() as n:
        graph.replay()
    assert (n.graph_launches, n.launches, n.graph_kernels_launched) == (1, 0, 1)
    assert torch.equal(out.cpu(), x.cpu())


FORBIDDEN: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "another stream": lambda x: torch.cuda.default_stream().synchronize(),
    "to the host": lambda x: x.cpu(),
    "from pageable memory": lambda x: x.copy_(torch.ones(x.shape)),
}


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_what_a_capture_forbids(what: str, mode: str) -> None:
    x = torch.zeros(4).cuda()
    FORBIDDEN[what](x)
    with pytest.raises(RuntimeError, match="captur"):
        captured(lambda: FORBIDDEN[what](x), mode)
    captured(lambda: x + 1)


def test_another_thread_breaks_a_global_capture_alone() -> None:
    x = torch.zeros(4).cuda()

    def other() -> Tensor:
        thread = threading.Thread(target=torch.cuda.default_stream().synchronize)
        thread.start()
        thread.join()
        return x + 1

    captured(other, "thread_local")
    with pytest.raises(RuntimeError, match="captur"):
        captured(other, "global")


def test_a_stream_that_was_not_joined() -> None:
    x, side = torch.zeros(4).cuda(), torch.cuda.Stream()

    def step(join: bool) -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        if join:
            torch.cuda.current_stream().wait_stream(side)

    captured(lambda: step(True))
    with pytest.raises(RuntimeError, match="unjoined"):
        captured(lambda: step(False))


def test_work_beside_a_capture_is_counted() -> None:
    x = torch.zeros(4).cuda()

    def step() -> None:
        x.add_(1)
        with torch.cuda.stream(torch.cuda.default_stream()):  # runs at once, and is not in the graph
            x.add_(1)

    with device_counters.counting() as n:
        captured(step)
    assert (n.stray_operations, n.last_graph_kernels) == (1, 1)


def test_leaks_show() -> None:
    torch.cuda.empty_cache()
    before = device_counters.counters()
    x, event = torch.empty(1 << 26, device="cuda"), torch.cuda.Event()
    event.record()
    now = device_counters.counters()
    assert (now.live_bytes - before.live_bytes, now.live_events - before.live_events) == (1 << 28, 1)
    del x, event
    torch.cuda.empty_cache()
    assert device_counters.counters().live_bytes == before.live_bytes


def test_memory_has_a_limit() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(60 << 30, dtype=torch.uint8, device="cuda")
    with pytest.raises(RuntimeError, match="allocate memory"):
        torch.empty(60 << 30, dtype=torch.uint8)


def test_two_devices() -> None:
    assert torch.cuda.device_count() == 2
    x, side = torch.arange(4.0).to("cuda:1"), torch.cuda.Stream("cuda:1")
    assert torch.equal(x.to("cuda:0").cpu(), torch.arange(4.0))
    with device_counters.counting() as n:
        x.add_(1)
    assert n.launches == n.launches_beyond_device_0 == 1
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(0))
    with pytest.raises(RuntimeError, match="device"):
        event.record(side)
