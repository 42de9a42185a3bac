"""``GraphedStep`` on a CPU against plain loops, and its handling of captures with a stand-in for CUDA's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_capturer import FakeCapturer
from tiny_networks import tiny
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrnet_fast.training import GraphedStep, GraphedStepWarning

MSE = nn.MSELoss()


def small() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    return nn.Sequential(*layers)


def batches(count: int, size: int = 8, outputs: int = 2, stride: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    draw = lambda channels, side: torch.randn(2, channels, side, side, generator=generator)  # noqa: E731
    return [(draw(3, size), draw(outputs, size // stride)) for _ in range(count)]


def sgd(model: nn.Module, **options: Any) -> optim.Optimizer:
    return optim.SGD(model.parameters(), **({"lr": 0.05, "momentum": 0.9, "fused": True} | options))


def average_of(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))


def plain_loop(
    model: nn.Module, optimizer: optim.Optimizer, data: list[tuple[Tensor, Tensor]], *, accumulate: int = 1,
    clip_norm: float | None = None, ema: AveragedModel | None = None, dtype: torch.dtype | None = None,
    scheduler: Any = None,
) -> list[Tensor]:  # fmt: skip
    losses = []
    for k, (images, targets) in enumerate(data):
        if k % accumulate == 0:
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = MSE(model(images), targets)
        (loss / accumulate).backward()
        losses.append(loss.detach())
        if k % accumulate == accumulate - 1:
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if ema is not None:
                ema.update_parameters(model)
            if scheduler is not None:
                scheduler.step()
    return losses


def assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    for (name, own), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(own, other), name


def quiet_step(*args: Any, **options: Any) -> GraphedStep:
    """Return a step whose warnings are no matter."""
    warnings.simplefilter("ignore", GraphedStepWarning)
    return GraphedStep(*args, **options)


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hrnet_fast.training.GraphedStepWarning")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda m: optim.AdamW(m.parameters(), lr=0.01), {}),
        (lambda m: optim.SGD(m.parameters(), lr=0.05, momentum=0.9), {"accumulate": 3, "clip_norm": 0.1}),
        (lambda m: optim.AdamW(m.parameters(), lr=0.01), {"dtype": torch.bfloat16, "ema": True, "clip_norm": 0.1}),
    ],
    ids=["adamw", "sgd-accumulate-clip", "adamw-bfloat16-ema-clip"],
)
def test_a_cpu_computes_what_a_plain_loop_does(
    make: Callable[[nn.Module], optim.Optimizer], options: dict[str, Any]
) -> None:
    model = tiny("v1").train()
    other = copy.deepcopy(model)
    data = batches(6, 64, 3, 4)
    averages = (average_of(model), average_of(other)) if options.pop("ema", False) else (None, None)
    step = GraphedStep(model, MSE, make(model), ema=averages[0], **options)
    losses = [step(*batch) for batch in data]
    expected = plain_loop(other, make(other), data, ema=averages[1], **options)
    assert all(torch.equal(a, b) for a, b in zip(losses, expected, strict=True))
    assert not any(loss.requires_grad for loss in losses)
    assert_equal_states(model, other)
    if averages[0] is not None:
        assert_equal_states(*averages)  # type: ignore[arg-type]
    report = step.explain()
    assert (report.eager, report.replays, report.captures) == (6, 0, 0)
    assert "CUDA graphs need a CUDA device" in str(report)


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 3}, {"clip_norm": 0.05, "ema": True}, {"accumulate": 2, "ema": True}], ids=str
)
def test_replays_compute_what_a_plain_loop_does(captures: type[FakeCapturer], options: dict[str, Any]) -> None:
    """Each call counts once, whether it waits, is captured or replayed; a scheduler's rate holds from its step on."""
    model = small()
    other = copy.deepcopy(model)
    data = batches(13)[: 12 if "accumulate" in options else 13]
    averages = (average_of(model), average_of(other)) if options.pop("ema", False) else (None, None)
    mine, theirs = sgd(model), sgd(other)
    captures.watched = (model, mine, averages[0])
    scheduler = optim.lr_scheduler.StepLR(mine, 2, 0.5)
    step = GraphedStep(model, MSE, mine, ema=averages[0], **options)
    losses = []
    for k, batch in enumerate(data):
        losses.append(step(*batch))
        if k % options.get("accumulate", 1) == options.get("accumulate", 1) - 1:
            scheduler.step()
    expected = plain_loop(
        other, theirs, data, ema=averages[1], scheduler=optim.lr_scheduler.StepLR(theirs, 2, 0.5), **options
    )
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-7)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-7)
    if averages[0] is not None:
        torch.testing.assert_close(
            dict(averages[0].state_dict()), dict(averages[1].state_dict()), rtol=1e-5, atol=1e-7  # type: ignore[union-attr]
        )  # fmt: skip
    accumulate = options.get("accumulate", 1)
    report = step.explain()
    assert report.captures == min(accumulate, 3)
    assert report.eager == accumulate
    assert report.replays == len(data) - report.eager
    assert isinstance(mine.param_groups[0]["lr"], float)


def test_micro_batches_of_one_step_are_eager_and_replayed(captures: type[FakeCapturer]) -> None:
    """Gradients add up wherever the micro-batches ran, also behind a caller's ``zero_grad`` between steps."""
    model = small()
    other, optimizer = copy.deepcopy(model), sgd(model)
    captures.watched = (model, optimizer)
    step = GraphedStep(model, MSE, optimizer, accumulate=2)
    sizes = [8, 8, 8, 16, 16, 8, 8, 16, 24, 8, 8, 24, 16, 16, 24, 8, 32, 8, 8, 8]
    data = [batches(k + 1, size)[k] for k, size in enumerate(sizes)]
    losses = []
    for k, batch in enumerate(data):
        if k % 4 == 0:
            optimizer.zero_grad()
        losses.append(step(*batch))
    torch.testing.assert_close(losses, plain_loop(other, sgd(other), data, accumulate=2), rtol=1e-5, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=1e-4, atol=1e-6)
    report = step.explain()
    assert (report.captures, report.eager) == (6, 5), str(report)


def test_a_parameter_without_gradients_in_some_micro_batches(captures: type[FakeCapturer]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = small(), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Any:
            return self.b(x) if x.shape[-1] == 16 else self.a(x)

    model = Two()
    other, optimizer = copy.deepcopy(model), sgd(model)
    captures.watched = (model, optimizer)
    step = quiet_step(model, MSE, optimizer, accumulate=2)
    data = [batches(k + 1, size)[k] for k, size in enumerate([8, 16] * 5)]
    losses = [step(*batch) for batch in data]
    torch.testing.assert_close(losses, plain_loop(other, sgd(other), data, accumulate=2), rtol=1e-5, atol=0)
    assert "other parameters receive gradients" in str(step.explain())


def test_without_an_optimizer_gradients_are_left_to_the_caller(captures: type[FakeCapturer]) -> None:
    model = small()
    other, optimizer = copy.deepcopy(model), sgd(model)
    captures.watched = (model,)
    step = GraphedStep(model, MSE)
    for batch in batches(5):
        optimizer.zero_grad()
        step(*batch)
        optimizer.step()
    plain_loop(other, sgd(other), batches(5))
    assert_equal_states(model, other)
    assert step.explain().replays == 4


def test_a_result_is_a_copy_of_the_losses_structure(captures: type[FakeCapturer]) -> None:
    model = small()

    def loss(outputs: Tensor, targets: dict[str, Any]) -> dict[str, Any]:
        found = outputs - targets["maps"][0]
        return {"loss": found.square().mean(), "parts": (found.abs().mean(), None), "name": "mse"}

    captures.watched = (model,)
    step = GraphedStep(model, loss)
    data = batches(4)
    found = [step(images, {"maps": [maps], "scale": 2}) for images, maps in data]
    assert step.explain().replays == 3
    expected = [loss(model(images), {"maps": [maps]})["loss"] for images, maps in data]
    for one, value in zip(found, expected, strict=True):
        torch.testing.assert_close(one["loss"], value.detach())
        assert (one["name"], one["parts"][1], one["parts"][0].requires_grad) == ("mse", None, False)


def test_each_shape_and_constant_has_its_graph(captures: type[FakeCapturer]) -> None:
    model = small()
    captures.watched = (model,)
    step = quiet_step(model, lambda outputs, targets: (outputs - targets[0]).square().mean() * targets[1], max_graphs=2)
    kinds = [(8, 1), (16, 1), (8, 2)]
    for size, factor in kinds * 3:
        (images, maps), *_ = batches(1, size)
        value = step(images, (maps, factor))
        torch.testing.assert_close(value, ((model(images) - maps).square().mean() * factor).detach())
    report = step.explain()
    assert report.evictions > 0
    assert sum(bool(shape.captured) for shape in report.shapes) == 2
    assert "images [2, 3, 16, 16] float32, targets ([2, 2, 16, 16] float32, 1)" in str(report)


def test_a_broken_capture_changes_nothing_and_is_tried_again(captures: type[FakeCapturer]) -> None:
    model = small()
    other, optimizer = copy.deepcopy(model), sgd(model)
    captures.watched, captures.broken = (model, optimizer), 1
    step = GraphedStep(model, MSE, optimizer)
    data = batches(5)
    step(*data[0])
    gradients = [p.grad for p in model.parameters()]
    with pytest.warns(GraphedStepWarning, match=r"the step cannot be captured: RuntimeError: the capture is broken"):
        step(*data[1])
    assert all(p.grad is not g for p, g in zip(model.parameters(), gradients, strict=True))
    for batch in data[2:]:
        step(*batch)
    assert (step.explain().captures, step.explain().replays) == (1, 3)
    plain_loop(other, sgd(other), data)
    assert_equal_states(model, other)
