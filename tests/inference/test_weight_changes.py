"""Changes of a model's weights after an engine read them: noticed at the next call, by every way of changing them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_networks import enliven, image, two_stages
from torch import nn

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.inference import weight_versions
from hrnet_fast.inference.weight_versions import WeightVersions
from hrnet_fast.ops.primitives import load_compiled


def other(model: nn.Module) -> nn.Module:
    return enliven(copy.deepcopy(model), seed=3)  # type: ignore[no-any-return]


def in_place(model: Any) -> None:
    with torch.no_grad():
        model.conv1.weight.mul_(1.5)


def load(model: Any) -> None:
    model.load_state_dict(other(model).state_dict())


def assign(model: Any) -> None:
    model.load_state_dict(other(model).state_dict(), assign=True)


def optimizer_step(model: Any) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(model.parameters(), 0.1, foreach=True).step()


def averaged(model: Any) -> None:
    """As trainers swap a model's weights with their averages."""
    averages = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    averages.update_parameters(other(model))
    averages.update_parameters(other(model))
    for p, average in zip(model.parameters(), averages.module.parameters(), strict=True):
        p.data, average.data = average.data, p.data


def data(model: Any) -> None:
    model.conv1.weight.data = model.conv1.weight.data * 1.5


def new_parameter(model: Any) -> None:
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 1.5)


def new_module(model: Any) -> None:
    model.conv1 = other(model).conv1


def new_statistics(model: Any) -> None:
    model.train()
    with torch.no_grad():
        model(image(32, 32, batch=2))
    model.eval()


WAYS = [in_place, load, assign, optimizer_step, averaged, data, new_parameter, new_module, new_statistics]


@pytest.mark.parametrize("way", WAYS)
def test_a_change_is_noticed(way: Callable[[Any], None]) -> None:
    model, x = two_stages(), image(32, 32)
    strict, follows, keeps = (
        hf.optimize_for_inference(model, x, refresh=refresh, verify=False) for refresh in ("error", "auto", "never")
    )
    before = strict(x)
    assert torch.equal(follows(x), before)
    way(model)
    for call in (lambda: strict(x), lambda: strict.prepare((1, 3, 32, 32))):
        with pytest.raises(InputError, match=r"weights changed.*engine\.refresh"):
            call()
    assert torch.equal(keeps(x), before)
    fresh = hf.optimize_for_inference(model, x, verify=False)
    assert not torch.equal(fresh(x), before)
    assert torch.equal(follows(x), fresh(x))
    strict.refresh()
    assert torch.equal(strict(x), fresh(x))
    assert strict._versions.unchanged()


def test_modules_that_compute_other_steps_are_refused() -> None:
    model, x = two_stages(), image(32, 32)
    strict, follows = (hf.optimize_for_inference(model, x, refresh=r, verify=False) for r in ("error", "auto"))
    model.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, bias=False).eval()
    for _ in range(2):
        with pytest.raises(InputError, match="an engine of its own"):
            strict.refresh()
        with pytest.raises(InputError, match="an engine of its own"):
            follows(x)


def test_a_write_through_data_is_not_noticed() -> None:
    """It moves no version counter. A new shape compares values, and `refresh` reads them."""
    model, x = two_stages(), image(32, 32)
    engine = hf.optimize_for_inference(model, x, refresh="auto", verify=False)
    before = engine(x)
    model.conv1.weight.data.copy_(other(model).conv1.weight)
    assert torch.equal(engine(x), before)
    with pytest.raises(InputError, match="refresh"):
        engine(image(64, 32))
    engine.refresh()
    assert not torch.equal(engine(x), before)


def test_what_changes_no_weight_is_no_change() -> None:
    model, x = two_stages(), image(32, 32)
    engine = hf.optimize_for_inference(model, x, verify=False)
    before = engine(x)
    model.requires_grad_(False).train().eval()
    model.state_dict()
    hf.accelerate(model)
    copy.deepcopy(model)
    model.zero_grad()
    model.to("cpu", torch.float32)
    with torch.no_grad():
        model(x)
    assert torch.equal(engine(x), before)


def test_a_refresh_that_fails_is_asked_for_again() -> None:
    model, x = two_stages(), image(32, 32)
    engine = hf.optimize_for_inference(model, x, refresh="auto", verify=False)
    model.final_layer.weight = nn.Parameter(model.final_layer.weight.detach().to("meta"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"final_layer\.weight has no data"):
            engine(x)


def test_engines_of_files_have_no_source(tmp_path: Any) -> None:
    model, x = two_stages(), image(32, 32)
    hf.optimize_for_inference(model, x, verify=False).save(tmp_path / "engine.pt")
    engine = hf.Engine.load(tmp_path / "engine.pt")
    before = engine(x)
    load(model)
    assert torch.equal(engine(x), before)


@pytest.mark.parametrize("value", ["warn", None, True])
def test_refresh_has_three_values(value: Any) -> None:
    with pytest.raises(InputError, match="accepted are 'error', 'auto' and 'never'"):
        hf.optimize_for_inference(two_stages(), image(32, 32), refresh=value)


class Odd(nn.Module):
    """Tensors as modules rarely hold them: none, shared, without version counter, without data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.again = self.conv
        with torch.inference_mode():
            self.register_buffer("inference", torch.ones(3))
        self.register_buffer("meta", torch.ones(3, device="meta"))
        self.register_buffer("empty", torch.ones(0))
        self.register_buffer("absent", None)


@pytest.fixture(params=["compiled", "python"])
def _states(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(weight_versions, "load_compiled", lambda: None)
    elif load_compiled() is None:
        pytest.skip("the compiled extension is not there")


def replaced(model: Odd) -> None:
    model.inference = torch.ones(3)


def appeared(model: Odd) -> None:
    model.absent = torch.ones(3)


def other_shape(model: Odd) -> None:
    model.meta = torch.ones(4, device="meta")


def deep(model: Odd) -> None:
    model.conv.weight.data = torch.ones(3, 3, 1, 1)


def removed(model: Odd) -> None:
    del model.empty


def fewer_modules(model: Odd) -> None:
    del model.again


def swapped(model: Odd) -> None:
    torch.utils.swap_tensors(model.conv.weight, nn.Parameter(torch.ones(3, 3, 1, 1)))


@pytest.mark.usefixtures("_states")
@pytest.mark.parametrize("change", [replaced, appeared, other_shape, deep, removed, fewer_modules, swapped])
def test_odd_tensors(change: Callable[[Odd], None]) -> None:
    model = Odd()
    versions = WeightVersions(model)
    assert versions.unchanged()
    weight, model.conv.weight = model.conv.weight, nn.Parameter(torch.zeros(3, 3, 1, 1))
    assert not versions.unchanged()
    model.conv.weight = weight
    assert versions.unchanged()
    change(model)
    assert not versions.unchanged()
    assert WeightVersions(model).unchanged()


@pytest.mark.slow
@pytest.mark.usefixtures("_states")
def test_a_model_that_holds_its_versions_is_freed() -> None:
    model: Any = Odd()
    model.versions = WeightVersions(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
