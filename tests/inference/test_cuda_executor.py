"""The CUDA executor, with a stand-in for graphs and streams on CPUs, and on a device where there is one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from plan_cases import tensors_of, tiny_case
from tiny_networks import ALL_HEADS, assert_same, enliven, image, maps, relative_l2, tiny
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hrnet_fast.errors import ImplementationError, InputError
from hrnet_fast.inference.execution.arrangement import MODES
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.cuda_executor import CudaExecutor
from hrnet_fast.inference.execution.cuda_graph import CudaDevice, GraphPool
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.execution.execution_state import ATTEMPTS, State
from hrnet_fast.inference.execution.stream_schedule import StreamSchedule
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan

CPU = torch.device("cpu")


class StandIn(CudaDevice):
    """A device whose graphs are the run itself, done again into the results of the first time."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__(CPU)
        self.log: list[Any] = []
        self.breaks = breaks
        self.lacks_memory = False
        self.foreign = False

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        yield

    def warm_up(self, run: Callable[[], Any]) -> None:
        if self.lacks_memory:
            raise torch.OutOfMemoryError("tried to allocate")
        run()
        self.log.append("warm")

    def capture(self, run: Callable[[], Any], memory: Any) -> tuple[Any, Any]:
        if self.breaks:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.log.append(("capture", memory))
        made = run()
        return _StandInGraph(self, run, made), made

    def memory(self) -> Any:
        return object()

    def fork(self, schedule: StreamSchedule) -> Any:
        return _StandInStreams(self, schedule)

    def after(self, mark: Any) -> None:
        self.log.append(("after", mark))

    def mark(self) -> Any:
        self.log.append("mark")
        return len(self.log)

    def capturing(self) -> bool:
        return self.foreign


class _StandInGraph:
    def __init__(self, device: StandIn, run: Callable[[], Any], made: Any) -> None:
        self._device, self._run, self._made = device, run, made

    def replay(self) -> None:
        self._device.log.append("replay")
        for old, new in zip(tree_leaves(self._made), tree_leaves(self._run()), strict=True):
            old.copy_(new)


class _StandInStreams:
    """Checks that every wait is for work that was signalled before."""

    def __init__(self, device: StandIn, schedule: StreamSchedule) -> None:
        self._schedule, self._done = schedule, set[int]()
        self.device = device

    @contextlib.contextmanager
    def __call__(self, group: int) -> Iterator[None]:
        assert set(self._schedule.waits[group]) <= self._done
        yield
        if group in self._schedule.signals:
            self._done.add(group)

    def join(self) -> None:
        assert set(self._schedule.joins) <= self._done
        self.device.log.append("joined")


def executor(case: tuple[Plan, Any, Tensor], mode: str, device: StandIn | None = None, **options: Any) -> CudaExecutor:
    autotuner = Autotuner(CPU, case[0].dtype, "library")
    return CudaExecutor(case[0], case[1], "cpu", mode, autotuner=autotuner, backend=device or StandIn(), **options)


def assert_equals_evaluator(made: Any, case: tuple[Plan, Any, Tensor], bound: float = 2e-6) -> None:
    expected = evaluate(*case)
    assert type(made) is type(expected)
    for actual, right in zip(maps(made), maps(expected), strict=True):
        assert actual.dtype == right.dtype
        assert relative_l2(actual, right) <= bound


@pytest.mark.parametrize("mode", ["sequential", "streams"])
@pytest.mark.parametrize("head", ["v1", "v2p", "ocr", "cii"])
def test_modes(head: str, mode: str) -> None:
    case, device = tiny_case(head, torch.float32), StandIn()
    run = executor(case, mode, device)
    assert run.state is State.CAPTURED
    assert run.mode == mode
    assert_equals_evaluator(run(case[2]), case)
    other = (case[0], case[1], case[2].flip(3))
    assert_equals_evaluator(run(other[2]), other)
    assert device.log.count("replay") == 2
    assert ("joined" in device.log) == (mode == "streams")
    assert run.tuning is None
    assert "as requested" in run.describe()[1]


def test_images_of_bytes() -> None:
    plan, tensors, _ = tiny_case("v1", torch.float32)
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    case = plan.with_images((0.1, 0.2, 0.3), (-1.0, 0.0, 1.0)), tensors, images
    assert_equals_evaluator(executor(case, "sequential")(images), case)


def test_copies() -> None:
    case = tiny_case("v2p", torch.float32)
    run = executor(case, "sequential")
    mine = run(case[2])
    kept = [t.clone() for t in mine]
    its = run(case[2] * 2, copy=False)
    assert run(case[2], copy=False) is its
    for a, b, c in zip(mine, kept, its, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(c, b)


def test_no_capture_is_told() -> None:
    case, device = tiny_case("v1", torch.float32), StandIn(breaks=True)
    for mode in ("sequential", "streams", "auto"):
        run = executor(case, mode, device)
        assert run.state is State.TUNED
        assert_equals_evaluator(run(case[2]), case)
        assert run.describe()[0].startswith("tuned: ")
        assert "no graph: RuntimeError: operation not permitted" in run.describe()[0]
    assert "no candidate runs" in run.describe()[1]


@pytest.mark.parametrize("mode", ["sequential", "auto"])
def test_a_broken_capture_is_tried_again(mode: str) -> None:
    case, device = tiny_case("v1", torch.float32), StandIn(breaks=True)
    run = executor(case, mode, device)
    run(case[2])
    assert run.state is State.TUNED
    device.breaks = False
    assert_equals_evaluator(run(case[2]), case)
    assert run.state is State.CAPTURED


def test_a_network_that_cannot_be_captured_is_tried_a_few_times() -> None:
    case, device = tiny_case("v1", torch.float32), StandIn(breaks=True)
    run = executor(case, "sequential", device)
    for _ in range(2 * ATTEMPTS):
        run(case[2])
        run.ready()
    assert device.log.count("warm") == ATTEMPTS


@pytest.mark.parametrize("mode", ["auto", "streams"])
def test_a_shape_that_comes_once_is_not_captured(mode: str) -> None:
    case, device = tiny_case("v1", torch.float32), StandIn()
    run = executor(case, mode, device, ready=False)
    assert_equals_evaluator(run(case[2]), case)
    assert run.state is State.EAGER
    assert "warm" not in device.log
    assert run.describe()[0].startswith("eager: ")
    assert "no graph: this is the first call of this shape" in run.describe()[0]
    assert "not measured" in run.describe()[1]
    assert_equals_evaluator(run(case[2]), case)
    assert run.state is State.CAPTURED
    assert "replay" in device.log


def test_who_is_asked_to_be_ready_is_at_the_first_call() -> None:
    case, device = tiny_case("v1", torch.float32), StandIn()
    run = executor(case, "streams", device, ready=False)
    run.ready()
    run.ready()
    assert device.log.count("warm") == 1
    assert_equals_evaluator(run(case[2]), case)
    assert device.log.count("replay") == 1
    assert executor(case, "streams", ready=False).profile(case[2], rounds=1)


@pytest.mark.parametrize("mode", ["auto", "sequential"])
def test_without_memory_there_is_none_or_it_goes_on_as_before(mode: str) -> None:
    case, device = tiny_case("v1", torch.float32), StandIn()
    run = executor(case, mode, device, ready=False)
    run(case[2])
    device.lacks_memory = True
    for _ in range(2):
        assert_equals_evaluator(run(case[2]), case)
    assert run.state is State.EAGER
    assert "OutOfMemoryError: tried to allocate" in run.describe()[0]
    with pytest.raises(torch.OutOfMemoryError, match="tried to allocate"):
        executor(case, mode, device)
    device.lacks_memory = False
    run.ready()  # who asks for it gets another attempt
    assert run.state is State.CAPTURED
    assert_equals_evaluator(run(case[2]), case)


def test_preparing_waits_for_whoever_runs_in_the_same_memory() -> None:
    device, pool = StandIn(), GraphPool()
    executor(tiny_case("v1", torch.float32), "sequential", device, pool=pool)
    other = executor(tiny_case("v1", torch.float32, 1, 32, 32), "sequential", device, pool=pool, ready=False)
    before = pool.mark
    assert before is not None
    device.log.clear()
    other.ready()
    assert device.log[0] == ("after", before)
    assert device.log[-1] == "mark"


def test_work_before_an_error_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    case, device, pool = tiny_case("v1", torch.float32), StandIn(), GraphPool()
    run = executor(case, "sequential", device, pool=pool, ready=False)
    monkeypatch.setattr(run._arrangement.executor, "run", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(case[2])
    assert pool.mark is not None


def test_first_answers_stay_what_they_are() -> None:
    class Given(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return self.conv(x), x.flatten(2)

    model = Given()
    model.conv = torch.nn.Conv2d(3, 4, 1)
    model.eval()
    x = image(32, 32)
    plan = make_plan(model, tuple(x.shape), torch.float32)
    run = executor((plan, tensors_of(model), x), "sequential", ready=False)
    first = run(x)
    kept = [t.clone() for t in first]
    run(x * 2)
    for a, b in zip(first, kept, strict=True):
        assert torch.equal(a, b)


def test_maps_of_several_shapes_share_memory() -> None:
    device, pool = StandIn(), GraphPool()
    large, small = tiny_case("v1", torch.float32), tiny_case("v1", torch.float32, 1, 32, 32)
    runs = [executor(case, "sequential", device, pool=pool) for case in (large, small)]
    places = {run._arrangement.executor.maps.arena.data_ptr() for run in runs}
    assert len(places) == 1
    for run, case in [*zip(runs, (large, small), strict=True)] * 2:
        assert_equals_evaluator(run(case[2]), case)


def test_auto_measures_and_remembers() -> None:
    case = tiny_case("v1", torch.float32)
    first = executor(case, "auto")
    assert first.tuning is not None
    assert set(first.tuning.seconds) == {"sequential", "streams"}
    assert first.mode == first.tuning.winner
    assert_equals_evaluator(first(case[2]), case)
    device = StandIn()
    second = executor(case, "auto", device)
    assert second.tuning is not None
    assert second.tuning.from_cache
    assert second.mode == first.mode
    assert device.log.count("warm") == 1  # only the winner was made


def test_modes_that_are_not_there() -> None:
    case = tiny_case("v1", torch.float32)
    with pytest.raises(ImplementationError, match="accepted are auto, sequential, streams, grouped"):
        executor(case, "fast")
    with pytest.raises(ImplementationError, match="grouped_conv3x3"):
        executor(case, "grouped")


def test_refresh_keeps_the_graph() -> None:
    model, x = tiny("ocr"), image()
    plan = make_plan(model, tuple(x.shape), torch.float32)
    device = StandIn()
    run = executor((plan, tensors_of(model), x), "streams", device)
    run(x)
    graph = run._arrangement.graph
    enliven(model, seed=3)
    run.refresh(tensors_of(model))
    assert run._arrangement.graph is graph
    assert_equals_evaluator(run(x), (plan, tensors_of(model), x))


def test_one_pool_for_several_shapes() -> None:
    """Memory is one pool's, and every run waits on the device for the one before, whichever shape that was."""
    device, pool = StandIn(), GraphPool()
    small, large = tiny_case("v1", torch.float32, 1, 32, 32), tiny_case("v1", torch.float32)
    runs = [executor(case, "sequential", device, pool=pool) for case in (small, large)]
    assert len({id(entry[1]) for entry in device.log if entry[0] == "capture"}) == 1
    for run, case in zip(runs, (small, large), strict=True):
        before = pool.mark
        assert_equals_evaluator(run(case[2]), case)
        assert ("after", before) in device.log
        assert pool.mark != before


def test_inside_somebody_elses_capture() -> None:
    case, device = tiny_case("v1", torch.float32), StandIn()
    run = executor(case, "sequential", device)
    device.foreign = True
    assert_equals_evaluator(run(case[2]), case)
    assert "replay" not in device.log
    with pytest.raises(InputError, match="prepare shapes before"):
        executor(case, "sequential", device)


def test_threads() -> None:
    case = tiny_case("v1", torch.float32)
    run = executor(case, "streams")
    inputs = [case[2].roll(k, 3) for k in range(6)]
    expected = [run(x) for x in inputs]
    made: list[Any] = [None] * len(inputs)

    def work(k: int) -> None:
        made[k] = run(inputs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(made, expected, strict=True):
        assert_same(a, b)


def test_another_shape_is_refused() -> None:
    case = tiny_case("v1", torch.float32)
    with pytest.raises(InputError, match="this plan is for"):
        executor(case, "sequential")(case[2][:, :, :1])


def test_nothing_of_the_capture_stays_behind() -> None:
    """What steps made besides outputs goes back to the pool."""
    run = executor(tiny_case("v2", torch.float32), "streams")
    layout = run._arrangement.executor.maps.layout
    buffers = run._arrangement.executor.maps._buffers
    assert all(b is None for b, offset in zip(buffers, layout.offsets, strict=True) if offset is None)
    assert run._arrangement.executor.maps._kept is None


def test_profile() -> None:
    case = tiny_case("v1", torch.float32)
    times = executor(case, "streams").profile(case[2], rounds=1)
    assert [i for i, _ in times] == list(range(len(case[0].steps)))


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        (mode, dtype)
        for mode in MODES
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        if (mode, dtype) != ("grouped", torch.float64)  # there is no such kernel
    ],
    ids=str,
)
@pytest.mark.parametrize("head", ALL_HEADS)
def test_on_a_device(head: str, mode: str, dtype: torch.dtype) -> None:
    # The poisoned memory of these tests asks for deterministic algorithms; some of those no graph can hold.
    torch.use_deterministic_algorithms(False)
    plan, tensors, x = tiny_case(head, dtype)
    run = CudaExecutor(plan, tensors, "cuda", mode)
    assert run.state is State.CAPTURED, run.describe()
    bound = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for given in (x, x.flip(3), x):
        made = [t.cpu() for t in maps(run(given.cuda()))]
        for actual, right in zip(made, maps(evaluate(plan, tensors, given)), strict=True):
            assert relative_l2(actual, right) <= bound
