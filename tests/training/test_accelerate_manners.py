"""What users rely on besides numbers: identity of parameters, keys, classes, signatures, copies, and the way back."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_all_fast, assert_evaluates_alike, assert_trains_alike, reasons, tiny
from tiny_networks import assert_same, image
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.training import accelerate, explain, restore
from hrnet_fast.training.fused_modules import FusedModule

X = {"dtype": torch.float64}


def test_parameters_keys_and_classes_stay() -> None:
    model = up.net()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    classes = {name: type(m) for name, m in model.named_modules()}
    assert accelerate(model, impl="reference") is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    for name, m in model.named_modules():
        assert isinstance(m, classes[name])
        assert type(m).__name__ == classes[name].__name__
        assert type(m).__module__ == classes[name].__module__
    assert any(isinstance(m, FusedModule) for m in model.modules())


def test_blocks_are_called_by_the_names_of_their_arguments() -> None:
    plain = up.net(modules=1).eval()
    fast = accelerated(plain)
    for name in ("layer1", "stage2.0", "stage2.0.branches.0"):
        own, given = plain.get_submodule(name), fast.get_submodule(name)
        assert list(inspect.signature(own.forward).parameters) == list(inspect.signature(given.forward).parameters)
    x = torch.randn(1, 8, 8, 8, **X)
    torch.testing.assert_close(fast.layer1(input=x), plain.layer1(input=x))
    unit = accelerated(nn.ModuleList([up.net(modules=1), up.BasicBlock(4, 4).double()]).eval())
    assert isinstance(unit[1], FusedModule)
    y = torch.randn(1, 4, 8, 8, **X)
    torch.testing.assert_close(unit[1](x=y), unit[1](y))


def test_weights_load_afterwards() -> None:
    plain, fast = up.net(), accelerated(up.net())
    other = {k: v * 1.25 if v.is_floating_point() else v for k, v in plain.state_dict().items()}
    for model in (plain, fast):
        model.load_state_dict(other)
    assert_trains_alike(fast, plain)


def test_an_optimizer_from_before_trains_it() -> None:
    plain = tiny("v1").double().train()
    fast = copy.deepcopy(plain)
    losses: list[list[float]] = []
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        if model is fast:
            accelerate(model, impl="reference")
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(image(64, 64, batch=2, **X)).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("head", ["features", "v2p", "ocr", "ci"])
def test_return_types(head: str) -> None:
    plain = tiny(head).double()
    assert_evaluates_alike(accelerated(plain), plain, image(64, 64, **X))


def test_train_and_eval_still_switch() -> None:
    fast = accelerated(up.net())
    assert fast.eval() is fast
    assert not any(m.training for m in fast.modules())
    fast.train()
    assert all(m.training for m in fast.modules())


def test_restore_gives_everything_back() -> None:
    model = tiny("v2").double()
    before = {name: (type(m), set(vars(m))) for name, m in model.named_modules()}
    output = model(image(64, 64, **X))
    assert restore(accelerate(model, impl="reference")) is model
    assert {name: (type(m), set(vars(m))) for name, m in model.named_modules()} == before
    assert_same(model(image(64, 64, **X)), output)
    with pytest.raises(hf.InputError, match="not accelerated"):
        explain(model)


def test_restore_forgets_refusals_too() -> None:
    model = up.net()
    model.stage2[0].branches[0][0].add_module("se", nn.Sigmoid())
    before = {name: (type(m), set(vars(m))) for name, m in model.named_modules()}
    accelerate(model)
    restore(model)
    assert {name: (type(m), set(vars(m))) for name, m in model.named_modules()} == before


def test_accelerating_twice_is_accelerating_once() -> None:
    model = accelerate(accelerate(up.net(), impl="reference"), impl="reference", memory="min")
    for m in model.modules():
        if isinstance(m, FusedModule):
            assert not isinstance(m.unfused_class, type) or not issubclass(m.unfused_class, FusedModule)
            assert m.fused_settings.memory == "min"
    restore(model)
    assert not any(isinstance(m, FusedModule) for m in model.modules())


def test_what_is_no_hrnet_or_no_option() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(up.BasicBlock(4, 4))):
        with pytest.raises(hf.InputError, match="branches"):
            accelerate(model)
        assert not any(isinstance(m, FusedModule) for m in model.modules())
    with pytest.raises(hf.InputError, match="'lean' and 'min'"):
        accelerate(up.net(), memory="none")
    with pytest.raises(hf.ImplementationError, match="is not one of"):
        accelerate(up.net(), impl="quick")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_named_implementation_that_cannot_run_raises() -> None:
    with pytest.raises(hf.ImplementationError, match="cannot run here"):
        accelerate(up.net(), impl="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_copies_are_accelerated(duplicate: Callable[[Any], Any]) -> None:
    model = accelerated(up.net(), memory="min")
    twin = duplicate(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    shared = {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert bool(shared) == (duplicate is copy.copy)
    assert assert_all_fast(twin).fast == assert_all_fast(model).fast
    if duplicate is copy.deepcopy:
        assert_trains_alike(twin, model)
        assert not any(isinstance(m, FusedModule) for m in restore(twin).modules())
        assert_all_fast(model)
    assert type(duplicate(model.layer1)) is type(model.layer1)


class Counted(up.SegmentationModule):
    """Says itself what of it is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "pickled": True}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_of_the_models_own_classes(protocol: int) -> None:
    plain = up.net(Counted)
    plain.stage2[0].branches[0][0].add_module("se", nn.Sigmoid())  # a refused unit
    fast = accelerated(plain)
    assert "its se (Sigmoid)" in str(explain(fast))
    read = pickle.loads(pickle.dumps(fast, protocol))
    assert [type(m) for m in read.modules()] == [type(m) for m in plain.modules()]
    wanted = {name: set(vars(m)) for name, m in pickle.loads(pickle.dumps(plain)).named_modules()}
    given = {name: set(vars(m)) for name, m in read.named_modules()}
    wanted["stage2.0.branches.0.0"].add("fused_unsupported_reason")
    assert given == wanted
    assert read.stage2[0].branches[0][0].fused_unsupported_reason is None
    with pytest.raises(hf.InputError, match="not accelerated"):
        explain(read)
    assert_trains_alike(read, fast)
    assert "its se (Sigmoid)" in str(explain(fast))  # as before


READER = """
import sys

sys.modules["hrnet_fast"] = None  # importing it raises
sys.path.insert(0, sys.argv[1])
import torch

model, x = torch.load(sys.argv[2], weights_only=False)
torch.save([type(model).__module__, *model(x)], sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.processes
def test_a_saved_model_is_read_without_this_package(tmp_path: Path) -> None:
    """As the authors' face repository writes files: the whole model, by torch.save."""
    plain = up.net(up.SegmentationModule, modules=1).eval()
    plain.stage2[0].branches[0][0].add_module("se", nn.Sigmoid())  # a refused unit
    fast, x = accelerated(plain), image(32, 32, **X)
    assert "its se (Sigmoid)" in str(explain(fast))
    given, found = tmp_path / "model.pth", tmp_path / "maps.pth"
    torch.save((fast, x), given)
    arguments = [str(Path(up.__file__).parent), str(given), str(found)]
    done = subprocess.run([sys.executable, "-c", READER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    name, *maps = torch.load(found)
    assert name == "upstream_standins"
    for a, e in zip(maps, plain(x), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_outputs_can_be_saved(way: str) -> None:
    """Nothing of the graph hangs on a tensor that a chain returns."""
    out = accelerated(up.net()).layer1(torch.randn(2, 8, 8, 8, **X))
    assert out.requires_grad
    assert not vars(out)
    if way == "torch.save":
        buffer = io.BytesIO()
        torch.save(out, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.load(buffer).detach(), out.detach())


def test_a_slice_of_a_sequence_executes_alike() -> None:
    plain = tiny("v1", num_blocks=3).double()
    fast = accelerated(plain, memory="min")
    branch = fast.stage2[0].branches[0]
    x = torch.randn(2, 4, 8, 8, **X)
    part = branch[:2]
    torch.testing.assert_close(part(x), plain.stage2[0].branches[0][:2](x))
    assert part.fused_settings == branch.fused_settings
    assert part[0] is branch[0]


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_conversion_to_synchronised_normalisation(first: bool) -> None:
    plain = up.net()
    fast = accelerated(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)) if first else plain)
    fast = fast if first else nn.SyncBatchNorm.convert_sync_batchnorm(fast)
    assert not any(type(m) is nn.BatchNorm2d for m in fast.modules())
    assert_trains_alike(fast, plain)
    assert_all_fast(fast)


def test_batch_norm_class_swapped_for_another() -> None:
    fast = accelerated(up.net())
    fast.stage2[0].branches[0][0].bn1 = nn.InstanceNorm2d(4).double()
    assert "InstanceNorm2d" in str(explain(fast))
    assert not reasons(fast).keys() - {"stage2.0.branches.0"}
    assert isinstance(fast(image(32, 32, **X))[0], Tensor)
