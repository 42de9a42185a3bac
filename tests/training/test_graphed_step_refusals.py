"""What ``GraphedStep`` leaves eager, what it notices as changed, and the arguments that it refuses."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_capturer import FakeCapturer
from test_graphed_step import MSE, batches, plain_loop, quiet_step, sgd, small
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel

import hrnet_fast as hf
from hrnet_fast.training import GraphedStep, GraphedStepWarning


class Counting(nn.Module):
    """Counts its calls in Python, replaces a buffer, or draws numbers on the host."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.inner, self.what, self.calls = small(), what, 0
        self.register_buffer("total", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "attribute":
            self.calls += 1
        elif self.what == "buffer":
            self.total = self.total + 1
        elif self.what == "torch":
            x = x * torch.rand(())
        elif self.what == "random":
            x = x * random.random()
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("attribute", "calls of the model (Counting) changed"),
        ("buffer", "total was replaced by another tensor"),
        ("torch", "random generator of torch"),
        ("random", "random generator of random"),
    ],
)
def test_python_that_a_replay_would_leave_out_keeps_a_step_eager(
    captures: type[FakeCapturer], what: str, reason: str
) -> None:
    model = Counting(what)
    other = copy.deepcopy(model)
    captures.watched = (model,)
    step = quiet_step(model, MSE)
    data = batches(6)
    for seed in (torch.manual_seed, random.seed):
        seed(0)
    losses = [step(*batch) for batch in data]
    for seed in (torch.manual_seed, random.seed):
        seed(0)
    assert [torch.equal(loss, MSE(other(x), y)) for loss, (x, y) in zip(losses, data, strict=True)] == [True] * 6
    report = step.explain()
    assert (report.captures, report.replays) == (0, 0)
    assert reason in str(report)
    assert (model.calls, float(model.total[0])) == (other.calls, float(other.total[0]))


def test_an_optimizer_that_counts_steps_on_the_host_stays_eager(captures: type[FakeCapturer]) -> None:
    class Own(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["step"] = self.state[p].get("step", 0) + 1
            return super().step(closure)

    model = small()
    optimizer = Own(model.parameters(), lr=0.1)
    optimizer.defaults["capturable"] = optimizer.param_groups[0]["capturable"] = True
    captures.watched = (model, optimizer)
    step = quiet_step(model, MSE, optimizer)
    for batch in batches(4):
        step(*batch)
    assert "Own makes or replaces state in a step" in str(step.explain())
    assert [own["step"] for own in optimizer.state.values()] == [4] * len(optimizer.state)


def change_statistics(model: Any, optimizer: Any) -> None:
    model[1].eval()


def change_frozen(model: Any, optimizer: Any) -> None:
    model[0].weight.requires_grad_(False)


def change_memory(model: Any, optimizer: Any) -> None:
    model[0].weight.data = model[0].weight.data.clone()


def change_attribute(model: Any, optimizer: Any) -> None:
    model[1].momentum = 0.5


def change_layer(model: Any, optimizer: Any) -> None:
    model[2] = nn.Tanh()


def change_hyperparameter(model: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.1


def change_state(model: Any, optimizer: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize(
    "change",
    [change_statistics, change_frozen, change_memory, change_attribute, change_layer, change_hyperparameter,
     change_state],
)  # fmt: skip
def test_what_graphs_have_as_constants_is_noticed(
    captures: type[FakeCapturer], change: Callable[[Any, Any], None]
) -> None:
    model = small()
    other = copy.deepcopy(model)
    mine, theirs = sgd(model), sgd(other)
    captures.watched = (model, mine)
    step = quiet_step(model, MSE, mine)
    data = batches(8)
    losses = [step(*batch) for batch in data[:4]]
    change(model, mine)
    losses += [step(*batch) for batch in data[4:]]
    expected = plain_loop(other, theirs, data[:4])
    change(other, theirs)
    expected += plain_loop(other, theirs, data[4:])
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-7)
    assert step.explain().captures == 2


def test_a_step_that_changes_at_every_call_is_given_up(captures: type[FakeCapturer]) -> None:
    model = small()
    optimizer = sgd(model)
    captures.watched = (model, optimizer)
    step = quiet_step(model, MSE, optimizer)
    for k, batch in enumerate(batches(14)):
        optimizer.param_groups[0]["momentum"] = 0.9 + 0.001 * k
        step(*batch)
    report = step.explain()
    assert report.captures <= 3
    assert "the optimizer's momentum changed, again and again" in str(report)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (optim.AdamW, "AdamW was made without capturable=True"),
        (optim.Adagrad, "Adagrad has no option capturable"),
    ],
)
def test_optimizers_that_cannot_be_captured(
    captures: type[FakeCapturer], make: Callable[[Any], optim.Optimizer], reason: str
) -> None:
    model = small()
    step = GraphedStep(model, MSE, make(model.parameters()))
    with pytest.warns(GraphedStepWarning, match=reason):
        step(*batches(1)[0])


def test_calls_that_stay_eager_warn_once(captures: type[FakeCapturer]) -> None:
    model = small()
    images, targets = batches(1)[0]
    step = GraphedStep(model, lambda outputs, given: MSE(outputs, given if isinstance(given, Tensor) else given[0]))
    captures.watched = (model,)
    with pytest.warns(GraphedStepWarning, match="an object of set"):
        step(images, (targets, {1}))
    with pytest.warns(GraphedStepWarning, match="a tensor that requires gradients"):
        step(images.clone().requires_grad_(), targets)
    with torch.autocast("cpu"), pytest.warns(GraphedStepWarning, match="within torch.autocast"):
        step(images, targets)
    handle = model[1].register_forward_hook(lambda *_: None)  # type: ignore[index]
    with pytest.warns(GraphedStepWarning, match="a hook is registered on 1"):
        step(images, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(images, targets)
        handle.remove()
        for _ in range(4):
            step(images, targets)
    assert step.explain().replays == 3


def test_errors_of_the_loss_are_raised(captures: type[FakeCapturer]) -> None:
    model = small()
    captures.watched = (model,)

    def loss(outputs: Tensor, targets: Tensor) -> Any:
        if targets.shape[0] == 1:
            raise KeyError("no such target")
        found = {2: outputs, 3: {"value": outputs.mean()}}
        return found.get(targets.shape[0], outputs.mean())

    step = quiet_step(model, loss)
    x = torch.zeros(1, 3, 8, 8)
    for _ in range(3):
        with pytest.raises(KeyError, match="no such target"):
            step(x, torch.zeros(1))
    with pytest.raises(hf.InputError, match=r"a tensor of shape \[1, 2, 8, 8\]"):
        step(x, torch.zeros(2))
    with pytest.raises(hf.InputError, match="returned dict"):
        step(x, torch.zeros(3))
    with torch.no_grad(), pytest.raises(RuntimeError):
        step(x, torch.zeros(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 1}, "loss=1"),
        ({"optimizer": "sgd"}, "optimizer='sgd'"),
        ({"dtype": torch.int8}, "dtype=torch.int8"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"clip_norm": "1"}, "clip_norm='1'"),
        ({"ema": nn.ReLU()}, "ema=ReLU()"),
        ({"capture_at": 0}, "capture_at=0"),
        ({"model": nn.ReLU()}, "ReLU has no parameters"),
        ({"dtype": torch.float16}, "float16 without an optimizer"),
        ({"ema": AveragedModel(nn.Linear(1, 1))}, "without an optimizer there is no update"),
    ],
    ids=str,
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    arguments = {"model": small(), "loss": MSE} | options
    with pytest.raises(hf.InputError) as error:
        hf.training.GraphedStep(**arguments)
    assert message in str(error.value)
