"""Training on CUDA, its host side: every head, implementation, dtype, layout; devices, captures, waits."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import device_counters
import pytest
import torch
from tiny_networks import ALL_HEADS, image, tiny, two_stages
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import hrnet_fast as hf

pytestmark = pytest.mark.nulldevice
IMPLS = ("reference", "triton", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
HEADS_OF_TRITON = ("v1", "ocr")  # the other heads launch the same kernels


def loss_of(output: Any) -> Tensor:
    return sum(t.float().square().mean() for t in tree_leaves(output) if isinstance(t, Tensor))  # type: ignore[return-value]


def step_of(model: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    """Return a training step under autocast, for float32 without."""

    def step() -> None:
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            output = model(x)
        loss_of(output).backward()

    return step


def accelerated(impl: str, head: str = "v1", device: str = "cuda") -> nn.Module:
    return hf.accelerate(tiny(head).to(device).train(), impl=impl)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "impl"), [(h, i) for h in ALL_HEADS for i in IMPLS if i != "triton" or h in HEADS_OF_TRITON]
)
def test_every_head_trains_and_evaluates(head: str, impl: str) -> None:
    # One layout with Triton, whose compiling takes the time, and one dtype with its other head.
    for layout in LAYOUTS if impl != "triton" else LAYOUTS[1:]:
        model = tiny(head).cuda().to(memory_format=layout)  # type: ignore[call-overload]
        hf.accelerate(model.train(), impl=impl)
        x = image(64, 64, batch=2).cuda().contiguous(memory_format=layout)
        for dtype in DTYPES if impl != "triton" or head == "v1" else DTYPES[1:2]:
            with device_counters.counting() as n:
                step_of(model.train(), x, dtype)()
                with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
                    model.eval()(x)
            assert (n.errors, n.synchronizations) == (0, 0), (layout, dtype)
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("memory", ["fast", "min"])
def test_what_is_kept_for_backward(memory: str) -> None:
    """Other settings of memory launch in another order, and "min" runs branches twice."""
    model = hf.accelerate(tiny().cuda().train(), impl="cuda", memory=memory)
    step = step_of(model, image(64, 64, batch=2).cuda(), torch.bfloat16)
    step()
    with device_counters.counting() as n:
        step()
    assert (n.errors, n.synchronizations, n.to_host) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_timms_model_trains(impl: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("hrnet_w18_small", num_classes=10).cuda().train()
    hf.accelerate(model, impl=impl)
    step = step_of(model, image(64, 64, batch=2).cuda(), torch.bfloat16)
    with device_counters.counting() as n:
        step()
    assert (n.errors, n.synchronizations) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("impl", "dtype"),
    [(impl, dtype) for impl in IMPLS for dtype in DTYPES[:2] if (impl, dtype) != ("triton", torch.float32)],  # as above
    ids=str,
)
def test_everything_runs_on_the_tensors_device(impl: str, dtype: torch.dtype) -> None:
    """With cuda:0 current, a step and an evaluation on cuda:1 launch nothing on cuda:0."""
    model = accelerated(impl, device="cuda:1")
    x = image(64, 64, batch=2).to("cuda:1")
    with device_counters.counting() as n:
        step_of(model, x, dtype)()
        with torch.no_grad(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            model.eval()(x)
    assert torch.cuda.current_device() == 0
    assert n.launches == n.launches_beyond_device_0 > 0


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_a_warm_step_neither_waits_nor_keeps_memory(impl: str) -> None:
    """Rounds of training and evaluation leave no memory, event, stream, graph or kernel behind."""
    model, x = hf.accelerate(two_stages().cuda().train(), impl=impl), image(64, 64, batch=2).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step = step_of(model, x, torch.bfloat16)

    def whole_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        step()
        optimizer.step()
        with torch.no_grad():
            model.eval()(x)
        model.train()

    for _ in range(2):
        whole_step()
    gc.collect()
    before = device_counters.counters()
    held = torch.cuda.memory_allocated()
    with device_counters.counting() as n:
        for _ in range(20):
            whole_step()
    gc.collect()
    after = device_counters.counters()
    assert (n.synchronizations, n.to_host, n.errors) == (0, 0, 0)
    assert torch.cuda.memory_allocated() == held
    for gauge in ("live_bytes", "live_events", "live_graphs", "live_streams", "live_modules"):
        assert getattr(after, gauge) == getattr(before, gauge), gauge


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_a_warm_evaluation_neither_waits_nor_copies(impl: str) -> None:
    model, x = accelerated(impl).eval(), image(64, 64).cuda()
    with torch.no_grad():
        model(x)
        with device_counters.counting() as n:
            model(x)
    assert (n.synchronizations, n.to_host, n.errors) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_a_whole_training_step_is_one_graph(impl: str) -> None:
    model, x = accelerated(impl), image(64, 64, batch=2).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), capturable=True)
    step = step_of(model, x, torch.bfloat16)

    def whole_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        step()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            whole_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with device_counters.counting() as n, torch.cuda.graph(graph):
        whole_step()
    assert (n.errors, n.stray_operations, n.captures_invalidated) == (0, 0, 0)
    kernels = device_counters.counters().last_graph_kernels
    with device_counters.counting() as n:
        graph.replay()
    assert (n.launches, n.graph_launches, n.graph_kernels_launched) == (0, 1, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
def test_make_graphed_callables(impl: str) -> None:
    model = hf.accelerate(two_stages().cuda().train(), impl=impl)
    graphed: Any = torch.cuda.make_graphed_callables(model, (image(64, 64, batch=2).cuda().requires_grad_(),))
    with device_counters.counting() as n:
        loss_of(graphed(image(64, 64, batch=2).cuda().requires_grad_())).backward()
    assert (n.graph_launches, n.errors) == (2, 0)


def statistics(model: nn.Module) -> int:
    """Return a training step's launches that find statistics of batches."""
    step = step_of(model, image(64, 64, batch=2).cuda())
    step()
    device_counters.reset()
    step()
    return sum(n for name, n in device_counters.kernels().items() if "bn_statistics_kernel" in name)


def test_new_branches_and_widened_ones_share_launches() -> None:
    model: Any = accelerated("cuda", "c")
    together = statistics(model)
    for sequences in (model.transition1, model.incre_modules):
        handle = sequences[0].register_forward_hook(lambda *_: None)
        assert together < statistics(model)
        handle.remove()
    assert together == statistics(model)


def test_branches_share_launches() -> None:
    """Unless one of them must run alone: here because of a hook, or because it alone needs no gradients."""
    model = accelerated("cuda")
    branches = [m for name, m in model.named_modules() if name.rpartition(".")[0].endswith("branches")]
    together = statistics(model)
    handles = [branch.register_forward_hook(lambda *_: None) for branch in branches]
    alone = statistics(model)
    assert together < alone
    for handle in handles:
        handle.remove()
    assert statistics(model) == together
    frozen = ("conv", "bn", "layer1", "transition1.0", "stage2.0.branches.0")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    assert together < statistics(model) < alone
    assert hf.explain(model).fast == len(hf.explain(model).blocks)
