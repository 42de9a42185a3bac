"""Engines on CUDA, their host side: graphs and their pool, threads, shapes, devices, transfers, leaks."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import device_counters
import pytest
import torch
from tiny_networks import ALL_HEADS, image, tiny, two_stages

import hrnet_fast as hf
from hrnet_fast.doctor import engine_check
from hrnet_fast.inference.execution.arrangement import MODES
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.cuda_executor import CudaExecutor
from hrnet_fast.inference.execution.cuda_graph import CudaDevice, GraphPool
from hrnet_fast.inference.execution.cudnn_search import cudnn_search
from hrnet_fast.inference.execution.execution_state import State
from hrnet_fast.inference.planning.lowering import make_plan

pytestmark = pytest.mark.nulldevice


def engine_of(model: torch.nn.Module, x: torch.Tensor, **options: Any) -> hf.Engine:
    return hf.optimize_for_inference(model, x, verify=False, **options)  # its numbers are arbitrary here


def small(width: int = 64, **options: Any) -> torch.Tensor:
    return image(64, width).to(options.pop("device", "cuda"), **options)


def captured(engine: hf.Engine) -> bool:
    return "in one graph" in engine.explain()


# Every head is captured below, with PyTorch's convolutions.
HEADS = [(head, "streams", torch.bfloat16) for head in ("v1", "v2p", "ocr", "higher", "c")]
OTHER_MODES = [("v1", mode, torch.bfloat16) for mode in MODES if mode != "streams"]
DTYPES = [("v1", "streams", torch.float64), ("v1", "grouped", torch.float32), ("v1", "grouped", torch.float16)]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "mode", "dtype"), HEADS + OTHER_MODES + DTYPES, ids=str)
def test_every_head_is_captured(head: str, mode: str, dtype: torch.dtype) -> None:
    model, x = tiny(head).cuda(), small()
    plan = make_plan(model, tuple(x.shape), dtype)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    run = CudaExecutor(plan, tensors, "cuda", mode)
    assert run.state is State.CAPTURED, run.describe()
    with device_counters.counting() as n:
        run(x)
    assert (n.graph_launches, n.synchronizations, n.to_host, n.errors) == (1, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_head_in_the_other_dtypes(dtype: torch.dtype) -> None:
    """With PyTorch's convolutions: tactics are compared above."""
    for head in ALL_HEADS:
        model, x = tiny(head).cuda(), small()
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        library = Autotuner(torch.device("cuda", 0), dtype, "library")
        run = CudaExecutor(make_plan(model, tuple(x.shape), dtype), tensors, "cuda", "sequential", autotuner=library)
        with device_counters.counting() as n:
            run(x)
        assert (run.state, n.graph_launches, n.synchronizations, n.errors) == (State.CAPTURED, 1, 0, 0), head


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["reference", "triton", "cuda"])
def test_timms_model_accelerated(impl: str) -> None:
    timm = pytest.importorskip("timm")
    model = hf.accelerate(timm.create_model("hrnet_w18_small", num_classes=10).cuda(), impl=impl).eval()
    engine = engine_of(model, small(), dtype=torch.bfloat16)
    assert captured(engine), engine.explain()


@pytest.mark.slow
def test_a_warm_call_is_one_launch() -> None:
    x = small()
    engine = engine_of(tiny().cuda(), x)
    engine(x)
    with device_counters.counting() as n:
        engine(x)
    assert (n.graph_launches, n.synchronizations, n.to_host, n.errors, n.stray_operations) == (1, 0, 0, 0, 0)


@pytest.mark.slow
def test_a_shape_is_captured_after_all_graphs_were_evicted() -> None:
    """The pool outlives its graphs: torch frees one whose last graph is gone."""
    engine = engine_of(two_stages().cuda(), small(), max_shapes=1)
    assert captured(engine)
    for width in (96, 64, 128):
        x = small(width)
        engine(x)  # evicts the only graph
        engine(x)  # captures this shape
        assert captured(engine), engine.explain()


def synchronize_elsewhere() -> None:
    """As another thread may. CUDA refuses it while anybody captures on the device, and breaks that capture."""

    def body() -> None:
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()


def test_a_broken_capture_leaves_the_pool_usable() -> None:
    device, pool = CudaDevice(torch.device("cuda", 0)), GraphPool()
    x = torch.zeros(8, device="cuda")
    for broken in (True, False) * 3:
        after: Callable[[], None] = synchronize_elsewhere if broken else lambda: None

        def body(after: Callable[[], None] = after) -> torch.Tensor:
            y = x + 1
            after()
            return y + 1

        try:
            graph, _ = device.capture(body, pool.memory(device))
        except RuntimeError:
            assert broken, "a capture that nobody disturbs succeeds"
        else:
            graph.replay()


@pytest.mark.slow
def test_a_broken_capture_is_answered_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape whose capture another thread broke is answered in single steps; a later call captures it."""
    broken = [True]
    capture = CudaDevice.capture

    def disturbed(self: CudaDevice, run: Callable[[], Any], memory: Any) -> Any:
        def body() -> Any:
            made = run()
            if broken[0]:
                synchronize_elsewhere()
            return made

        return capture(self, body, memory)

    monkeypatch.setattr(CudaDevice, "capture", disturbed)
    x = small()
    engine = engine_of(two_stages().cuda(), x)
    engine(x)
    broken[0] = False
    engine(x)
    assert captured(engine), engine.explain()


WORK: dict[str, Callable[[int], Any]] = {
    "convolves": lambda k: torch.nn.functional.conv2d(
        torch.zeros(1, 3, 8, 8 + k, device="cuda"), torch.zeros(3, 3, 3, 3, device="cuda")
    ),
    "synchronizes": lambda k: (torch.cuda.current_stream().synchronize(), torch.zeros(1, device="cuda").item()),
    "allocates": lambda k: torch.empty((1 << 20) * (1 + k % 32), device="cuda").cpu(),
    "pins memory": lambda k: torch.zeros(4096 * (1 + k % 32)).pin_memory().to("cuda", non_blocking=True),
    "empties the cache": lambda k: torch.cuda.empty_cache(),
}


@pytest.fixture
def disturbing() -> Iterator[Callable[[str], list[str]]]:
    """Starts a thread that works until the test ends, and returns the list of its errors."""
    stop, threads = threading.Event(), []

    def start(what: str) -> list[str]:
        errors: list[str] = []
        begun = threading.Event()

        def body() -> None:
            k = 0
            while not stop.is_set():
                k += 1
                try:
                    WORK[what](k)
                except RuntimeError as error:
                    errors.append(str(error).splitlines()[0])
                begun.set()

        threads.append(threading.Thread(target=body))
        threads[0].start()
        begun.wait()
        return errors

    yield start
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("what", WORK)
def test_other_threads_work_while_an_engine_is_prepared(what: str, disturbing: Callable[[str], list[str]]) -> None:
    errors = disturbing(what)
    before = torch.backends.cudnn.benchmark
    engine = engine_of(two_stages().cuda(), small())
    assert captured(engine), engine.explain()
    assert errors == []
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.slow
def test_no_capture_sets_a_flag_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    capture = CudaDevice.capture

    def watched(self: CudaDevice, run: Callable[[], Any], memory: Any) -> Any:
        def body() -> Any:
            thread = threading.Thread(target=lambda: seen.append(torch.backends.cudnn.benchmark))
            thread.start()
            thread.join()
            return run()

        return capture(self, body, memory)

    monkeypatch.setattr(CudaDevice, "capture", watched)
    engine_of(two_stages().cuda(), small())
    assert seen
    assert not any(seen)


@torch.no_grad()
def test_a_search_finds_what_the_flag_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search waits for the device; PyTorch does not repeat it for a convolution whose algorithm it knows."""

    def waits(width: int) -> int:
        x = small(width)
        with device_counters.counting() as n:
            torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
        return int(n.synchronizations)

    weight = torch.zeros(8, 3, 3, 3, device="cuda")
    with cudnn_search():
        assert waits(64) > 0
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert waits(64) == 0
    assert waits(96) > 0


@pytest.mark.slow
def test_a_new_shape_and_a_refresh_copy_at_most_once_to_the_host() -> None:
    """Whether weights are those that were read takes one number; folding them takes none."""
    model = two_stages().cuda()
    engine = engine_of(model, small())
    with device_counters.counting() as n:
        engine(small(96))
    assert n.to_host <= 1
    for parameter in model.parameters():
        parameter.data.mul_(2)
    with device_counters.counting() as n:
        engine.refresh()
    assert n.to_host <= 1


class Head(torch.nn.Module):
    """Takes several maps, as heads of other packages do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(12, 3, 1)

    def forward(self, maps: list[torch.Tensor]) -> Any:
        size = maps[0].shape[2:]
        return self.conv(torch.cat([torch.nn.functional.interpolate(m, size, mode="bilinear") for m in maps], 1))


class Estimator(torch.nn.Module):
    """Its forward takes more than an image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = two_stages("features"), Head()

    def forward(self, x: torch.Tensor, mode: str = "tensor") -> Any:
        return self.head(self.backbone(x))


@pytest.mark.slow
def test_parts_of_a_model_are_graphs() -> None:
    """One of an image and one of several maps, which are copied to its static inputs."""
    model, x = Estimator().cuda().eval(), small()
    hf.optimize_for_inference(model, x, verify=False)
    engines = [m.part_execution.engine for m in (model.backbone, model.head)]
    assert all(map(captured, engines))
    with torch.no_grad(), device_counters.counting() as n:
        model(x)
    assert (n.graph_launches, n.synchronizations, n.to_host, n.errors) == (2, 0, 0, 0)
    with torch.no_grad():
        for _ in range(2):
            assert model(small(96)).shape == (1, 3, 16, 24)
    assert all(engine.explain().count("in one graph") == 2 for engine in engines)


@pytest.mark.slow
def test_a_call_compares_versions_on_the_host() -> None:
    model, x = two_stages().cuda(), small()
    engine = engine_of(model, x)
    with torch.no_grad():
        model.conv1.weight.mul_(2)
    with device_counters.counting() as n, pytest.raises(hf.InputError, match="weights changed"):
        engine(x)
    assert (n.launches, n.graph_launches, n.to_host, n.synchronizations) == (0, 0, 0, 0)


@pytest.mark.slow
def test_a_call_that_refreshes_replays_the_same_graph() -> None:
    model, x = two_stages().cuda(), small()
    engine = engine_of(model, x, refresh="auto")
    with torch.no_grad():
        model.conv1.weight.mul_(2)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        torch.zeros(1, device="cuda")  # an empty graph warns
        with pytest.raises(hf.InputError, match="before a graph is captured"):
            engine(x)
        graph.capture_end()
    with device_counters.counting() as n:
        engine(x)
    assert (n.graph_launches, n.captures, n.errors) == (1, 0, 0)
    with device_counters.counting() as n:
        engine(x)
    assert (n.graph_launches, n.to_host, n.synchronizations) == (1, 0, 0)


@pytest.mark.slow
def test_weights_are_folded_on_the_device() -> None:
    model, x = two_stages().cuda(), small()
    with device_counters.counting() as n:
        engine_of(model, x)
    assert n.bytes_to_host < sum(p.nbytes for p in model.parameters()) / 10


@pytest.mark.slow
def test_folded_networks_lie_on_the_engines_device() -> None:
    engine = engine_of(two_stages().cuda(), small())
    folded = engine.folded()
    assert {t.device.type for t in folded.buffers()} == {"cuda"}
    assert folded(small()).is_cuda
    assert {t.device.type for t in engine.export().state_dict.values()} == {"cpu"}


@pytest.mark.slow
def test_the_doctor_tries_every_device() -> None:
    lines = engine_check()
    assert [line.split(": ")[0] for line in lines] == [
        f"{dtype} on {device}" for device in ("cpu", "cuda:0", "cuda:1") for dtype in ("float32", "bfloat16")
    ]
    assert all("captured: " in line for line in lines[2:]), lines


@pytest.mark.slow
def test_many_rounds_leak_nothing(tmp_path: Path) -> None:
    """Shapes come and go, weights are refreshed, engines are saved and loaded."""
    model = two_stages().cuda()
    inputs = [small(width) for width in (64, 96, 128)]
    engine = engine_of(model, inputs[0], max_shapes=2)
    path = tmp_path / "two.engine"

    def round_of(k: int) -> None:
        for _ in range(2):
            engine(inputs[k % 3])
        if k % 10 == 0:
            engine.refresh()
            engine.save(path)
            hf.Engine.load(path, "cuda")(inputs[k % 3])

    def live() -> tuple[int, ...]:
        gc.collect()
        torch.cuda.empty_cache()
        n = device_counters.counters()
        return (n.live_graphs, n.live_graph_execs, n.live_events, n.live_bytes, n.live_host_allocations)

    for k in range(10):
        round_of(k)
    before = live()
    for k in range(10, 40):
        round_of(k)
    assert live() == before


@pytest.mark.slow
def test_an_engine_on_the_second_device(tmp_path: Path) -> None:
    model, x = two_stages().to("cuda:1"), small(device="cuda:1")
    with device_counters.counting() as n:
        engine = engine_of(model, x)
        for width in (64, 96, 96):
            engine(small(width, device="cuda:1"))
        engine.refresh()
        engine.profile(x)
        engine.save(tmp_path / "two.engine")
        hf.Engine.load(tmp_path / "two.engine", "cuda:1")(x)
    assert captured(engine)
    assert n.launches == n.launches_beyond_device_0 > 0
    assert (torch.cuda.current_device(), n.errors) == (0, 0)


@pytest.mark.slow
def test_threads_share_an_engine() -> None:
    engine = engine_of(two_stages().cuda(), small())
    errors: list[str] = []

    def work(width: int) -> None:
        try:
            for _ in range(20):
                engine(small(width))
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=work, args=(width,)) for width in (64, 96, 64, 96)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
