"""``GraphedStep`` on CUDA, its host side: launches of a replay, what is captured, what runs eagerly and why."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import threading
import warnings
from collections.abc import Callable
from typing import Any

import device_counters
import pytest
import torch
from tiny_networks import image, tiny, two_stages
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import hrnet_fast as hf
from hrnet_fast.inference.weight_versions import WeightVersions
from hrnet_fast.training import GraphedStep, GraphedStepWarning, branch_streams

pytestmark = [pytest.mark.nulldevice, pytest.mark.filterwarnings("ignore::hrnet_fast.training.GraphedStepWarning")]
MSE = nn.MSELoss()


def network(device: str = "cuda", **options: Any) -> hf.HRNet:
    return two_stages(**options).to(device).train()


def batch(width: int = 64, pinned: bool = True) -> tuple[Tensor, Tensor]:
    found = image(64, width, batch=2), image(16, width // 4, batch=2)
    return tuple(t.pin_memory() for t in found) if pinned else found  # type: ignore[return-value]


def adamw(model: nn.Module, **options: Any) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), capturable=True, **options)


def sgd(model: nn.Module, **options: Any) -> optim.Optimizer:
    return optim.SGD(model.parameters(), **({"lr": 0.1, "momentum": 0.9} | options))


def average_of(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))


def assert_a_replay_launches_once(step: GraphedStep, x: Tensor, y: Tensor) -> None:
    """Nothing but the copies of inputs and result, and the graph."""
    before = step.explain().replays
    with device_counters.counting() as n:
        step(x, y)
    assert step.explain().replays == before + 1, str(step.explain())
    assert (n.launches, n.graph_launches, n.memcpys) == (0, 1, 3)
    assert (n.synchronizations, n.to_host, n.errors, n.stray_operations) == (0, 0, 0, 0)


CASES: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "adamw": lambda m: {"optimizer": adamw(m)},
    "sgd, bfloat16": lambda m: {"optimizer": sgd(m), "dtype": torch.bfloat16},
    "float16": lambda m: {"optimizer": adamw(m, fused=True), "dtype": torch.float16, "clip_norm": 1.0},
    "float16, sgd": lambda m: {"optimizer": sgd(m, fused=True), "dtype": torch.float16, "clip_norm": 1.0},
    "average, clipping": lambda m: {"optimizer": adamw(m, foreach=False), "clip_norm": 1.0, "ema": average_of(m)},
    "accumulation": lambda m: {"optimizer": sgd(m), "accumulate": 3, "ema": average_of(m)},
    "no optimizer": lambda m: {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "impl"),
    [(case, impl) for case in CASES for impl in ("cuda", "reference") if impl == "cuda" or " " not in case],
)
def test_a_replay_is_one_launch(case: str, impl: str) -> None:
    model = network()
    hf.accelerate(model, impl=impl) if impl == "cuda" else hf.restore(model)
    options = CASES[case](model)
    step = GraphedStep(model, MSE, **options)
    x, y = batch()
    accumulate = options.get("accumulate", 1)
    for _ in range(3 * accumulate):
        step(x, y)
    assert step.explain().captures == min(accumulate, 3), str(step.explain())
    for _ in range(accumulate):
        assert_a_replay_launches_once(step, x, y)
    if "ema" in options:
        assert int(options["ema"].n_averaged) == 4


@pytest.mark.parametrize(
    "kind",
    [optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adadelta, optim.RMSprop],
    ids=lambda k: k.__name__,
)
def test_rates_change_without_a_capture(kind: Any) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, capturable=True, weight_decay=0.01)
    step = GraphedStep(model, MSE, optimizer)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    x, y = batch()
    for _ in range(4):
        step(x, y)
        scheduler.step()
    with device_counters.counting() as n:
        step(x, y)
    assert (n.launches, n.graph_launches) == (1, 1)  # the rate, and the graph
    assert step.explain().captures == 1
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**4


def host_value(outputs: Tensor, targets: Tensor) -> Tensor:
    loss = MSE(outputs, targets)
    return loss if loss.item() < 1 else 2 * loss


def hard_examples(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = (outputs - targets).square()
    return losses[losses > losses.mean()].sum()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [host_value, hard_examples])
def test_a_loss_that_reads_the_host_runs_eagerly(loss: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 3, 1)).cuda()
    optimizer = adamw(model)
    step = GraphedStep(model, loss, optimizer)
    x = image(16, 16, batch=2).cuda()
    y = torch.zeros_like(x)
    step(x, y)
    state = copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.warns(GraphedStepWarning, match=r"test_host_graphed_step.py:\d+; a value is read on the host"):
        step(x, y)
    gc.collect()
    held = torch.cuda.memory_allocated()
    for _ in range(4):
        step(x, y)
    gc.collect()
    assert torch.cuda.memory_allocated() == held
    assert not torch.cuda.is_current_stream_capturing()
    assert optimizer.state_dict()["param_groups"] == state
    report = step.explain()
    assert (report.captures, report.eager) == (0, 6)
    # What follows can be captured all the same.
    step = GraphedStep(model, MSE, optimizer)
    for _ in range(3):
        step(x, y)
    assert step.explain().replays == 2, str(step.explain())


@pytest.mark.slow
def test_a_capture_that_another_thread_breaks_is_repeated() -> None:
    broken = [False, True]  # the eager call, the capture

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if broken and broken.pop(0):
            thread = threading.Thread(target=synchronize)
            thread.start()
            thread.join()
        return MSE(outputs, targets)

    def synchronize() -> None:
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()

    model = network()
    step = GraphedStep(model, loss, adamw(model))
    x, y = batch()
    for _ in range(4):
        step(x, y)
    report = step.explain()
    assert (report.captures, report.eager, report.replays) == (1, 2, 2), str(report)


def test_data_loaders_pin_memory_while_a_step_is_captured() -> None:
    model, stop, errors = network(), threading.Event(), list[str]()

    def pin() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            try:
                torch.zeros(4096 * (1 + k % 32)).pin_memory().to("cuda", non_blocking=True)
            except RuntimeError as error:
                errors.append(str(error))

    thread = threading.Thread(target=pin)
    thread.start()
    step = GraphedStep(model, MSE, adamw(model))
    for _ in range(3):
        step(*batch())
    stop.set()
    thread.join()
    assert (step.explain().replays, errors) == (2, [])


@pytest.mark.slow
def test_branches_have_streams_in_captures_only(monkeypatch: pytest.MonkeyPatch) -> None:
    forks = []
    forked = branch_streams._forked

    def watched(xs: Any) -> Any:
        forks.append((len(xs), torch.cuda.is_current_stream_capturing()))
        return forked(xs)

    monkeypatch.setattr(branch_streams, "_forked", watched)
    x, y = batch()
    for on in (True, False):
        model = hf.accelerate(tiny("v1").cuda().train(), impl="cuda")
        step = GraphedStep(model, MSE, sgd(model), branch_streams=on)
        with device_counters.counting() as n:
            for _ in range(3):
                step(x, y)
        assert (step.explain().replays, n.errors, n.stray_operations) == (2, 0, 0)
        assert forks == ([(2, True), (3, True), (4, True)] if on else [])
        forks.clear()


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["fast", "lean", "min"])
def test_every_memory_level_is_captured_with_streams(memory: str) -> None:
    """Contiguous maps, whose channels-last copies are computed again across the fork, and frozen first layers."""
    for layout in (torch.contiguous_format, torch.channels_last):
        model = tiny("v2").cuda().train().to(memory_format=layout)  # type: ignore[call-overload]
        hf.accelerate(model, impl="cuda", memory=memory)
        model.conv1.requires_grad_(False)
        step = GraphedStep(model, lambda outputs, _: outputs.square().mean(), sgd(model), dtype=torch.bfloat16)
        x = image(64, 64, batch=2).cuda().contiguous(memory_format=layout)
        for _ in range(3):
            step(x, None)
        assert step.explain().replays == 2, str(step.explain())


def test_dropout_draws_anew_at_each_replay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout()).cuda()
    step = GraphedStep(model, MSE, sgd(model))
    x = image(16, 16).cuda()
    offsets = []
    for _ in range(5):
        step(x, x)
        offsets.append(int(torch.cuda.get_rng_state().view(torch.int64)[-1]))
    assert step.explain().replays == 4
    assert len({b - a for a, b in itertools.pairwise(offsets)}) == 1
    assert offsets[1] > offsets[0]


@pytest.mark.slow
def test_averages_that_cannot_be_captured() -> None:
    for average, reason in (
        (AveragedModel, "has no multi_avg_fn"),
        (lambda m: AveragedModel(m, multi_avg_fn=get_swa_multi_avg_fn()), "the step cannot be captured"),
        (lambda m: AveragedModel(m, device="cpu", multi_avg_fn=get_ema_multi_avg_fn(0.9)), "on another device"),
    ):
        model = network()
        ema = average(model)
        step = GraphedStep(model, MSE, sgd(model), ema=ema)
        for _ in range(4):
            step(*batch())
        assert reason in str(step.explain())
        assert (int(ema.n_averaged), step.explain().captures) == (4, 0)


def test_a_scaler_needs_an_optimizer_that_asks_it_on_the_device() -> None:
    model = network()
    step = GraphedStep(model, MSE, sgd(model), dtype=torch.float16)
    for _ in range(3):
        step(*batch())
    assert "make SGD with fused=True" in str(step.explain())


@pytest.mark.slow
def test_graphs_come_and_go_without_a_leak() -> None:
    model = network()
    step = GraphedStep(model, MSE, adamw(model), max_graphs=2)
    data = [batch(width) for width in (64, 96, 128)]

    def live() -> tuple[int, ...]:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        n = device_counters.counters()
        return n.live_graphs, n.live_graph_execs, n.live_events, n.live_bytes, n.live_host_allocations

    def rounds(count: int) -> None:
        for _ in range(count):
            for x, y in data:
                for _ in range(3):
                    step(x, y)

    rounds(1)
    before = live()
    rounds(2)
    assert live() == before
    assert step.explain().evictions == 7
    assert step.explain().replays == 3 * 3 * 2


def test_the_second_device_and_other_streams() -> None:
    model = network("cuda:1")
    x, y = batch()
    with device_counters.counting() as n:
        step = GraphedStep(model, MSE, adamw(model))
        for stream in (torch.cuda.current_stream("cuda:1"), *(torch.cuda.Stream("cuda:1") for _ in range(3))):
            with torch.cuda.stream(stream), torch.cuda.device("cuda:0"):
                step(x, y)
    assert n.launches == n.launches_beyond_device_0 > 0
    assert (step.explain().replays, torch.cuda.current_device(), n.errors) == (3, 0, 0)


@pytest.mark.slow
def test_gradients_stay_between_eager_and_replayed_calls() -> None:
    """A shape that comes once is eager, in between; gradients of a step's micro-batches are added all the same."""
    model = network()
    step = GraphedStep(model, MSE, sgd(model), accumulate=2)
    x, y = batch()
    for _ in range(4):
        step(x, y)
    kept = [p.grad for p in model.parameters()]
    for first, second in ((batch(96), (x, y)), ((x, y), batch(128))):
        step(*first)
        step(*second)
        assert all(p.grad is not None for p in model.parameters())
    assert step.explain().eager == 4
    assert [p.grad is g for p, g in zip(model.parameters(), kept, strict=True)] == [True] * len(kept)


def test_a_model_that_moves_is_captured_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = two_stages().train()
        step = GraphedStep(model, MSE)
        x, y = batch()
        step(x, y)
        model.cuda()
        for _ in range(3):
            step(x, y)
    assert (step.explain().eager, step.explain().replays) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_distributed_steps_as_pytorch_documents_them(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven eager updates on the stream that the wrapper was made on; one reduction for each update."""
    monkeypatch.setenv("NULLDEVICE_ZERO_SCALARS", "0")  # the wrapper reads its buckets' sizes from the device
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=fake.FakeStore())
    reductions: list[bool] = []

    def reduce(_: Any, bucket: Any) -> Any:
        reductions.append(torch.cuda.is_current_stream_capturing())
        future = torch.futures.Future(devices=[torch.device("cuda", 0)])  # type: ignore[var-annotated]
        future.set_result(bucket.buffer())
        return future

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        model = nn.parallel.DistributedDataParallel(network(), device_ids=[0])
    reduce.__annotations__.clear()
    model.register_comm_hook(None, reduce)
    step = GraphedStep(model, MSE, adamw(model), accumulate=accumulate, stream=stream)
    x, y = batch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*AccumulateGrad.*")
        for _ in range(14 * accumulate):
            step(x, y)
    report = step.explain()
    assert (report.eager, report.captures, report.replays) == (11 * accumulate, accumulate, 3 * accumulate)
    assert reductions == [False] * 11 + [True]
    assert_a_replay_launches_once(step, x, y)


@pytest.mark.parametrize("memory", ["fast", "lean", "min"])
def test_the_capturing_stream_allocates_nothing_between_fork_and_join(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the reuse of memory safe (branch_streams), forward and backward, by the allocator's own record."""
    sections: list[tuple[int, int]] = []
    begun: list[int] = []

    def position() -> int:
        return len(torch.cuda.memory._snapshot()["device_traces"][0])

    def side() -> bool:
        return torch.cuda.is_current_stream_capturing() and torch.cuda.current_stream() != main()

    def main() -> torch.cuda.Stream:
        return step._capturer._memory.stream  # type: ignore[attr-defined]

    def forward(branches: Any, xs: Any) -> Any:
        start = position()
        outputs = run_branches(branches, xs)
        if torch.cuda.is_current_stream_capturing():
            sections.append((start, position()))
        for output in outputs:
            output.grad_fn.register_prehook(chain)
        return outputs

    def chain(_: Any) -> None:
        if side() and not begun:
            begun.append(position())

    def join(ctx: Any, *grads: Any) -> Any:
        sections.append((begun.pop(), position()))
        return fork_backward(ctx, *grads)

    run_branches = branch_streams.run_branches
    fork_backward = branch_streams._Fork.backward
    monkeypatch.setattr(branch_streams, "run_branches", forward)
    monkeypatch.setattr(branch_streams._Fork, "backward", staticmethod(join))
    torch.cuda.memory._record_memory_history(max_entries=1_000_000, context=None)
    # Contiguous maps and half precision: chains make copies in another layout and dtype.
    model = hf.accelerate(tiny("v2").cuda().train(), impl="cuda", memory=memory)
    step = GraphedStep(model, lambda outputs, _: outputs.square().mean(), sgd(model), dtype=torch.bfloat16)
    for _ in range(2):
        step(image(64, 64, batch=2).cuda(), None)
    assert step.explain().replays == 1, str(step.explain())
    assert (len(sections), begun) == (6, [])  # three modules, forward and backward
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    for begin, end in sections:
        streams = [entry["stream"] for entry in trace[begin:end] if entry["action"] == "alloc"]
        assert streams
        assert main().cuda_stream not in streams


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_engines_notice_the_steps_of_replays(with_optimizer: bool) -> None:
    """A replay runs no operator of PyTorch that would move versions: of running statistics, or of what is updated."""
    model = network()
    step = GraphedStep(model, MSE, sgd(model) if with_optimizer else None)
    x, y = batch()
    for _ in range(3):
        step(x, y)
    versions, before = WeightVersions(model), [p._version for p in model.parameters()]
    assert_a_replay_launches_once(step, x, y)
    assert not versions.unchanged()
    assert ([p._version for p in model.parameters()] != before) == with_optimizer
