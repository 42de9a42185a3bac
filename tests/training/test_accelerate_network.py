"""Networks with the reference's structure: stem and head execute fused by the same means as every other block."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from comparison import accelerated, assert_evaluates_alike, assert_trains_alike
from tiny_networks import image, tiny_config
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.implementations import ENV_VAR
from hrnet_fast.reference import HRNetReference
from hrnet_fast.training import accelerate, explain, fused_network, restore
from hrnet_fast.training.fused_modules import FusedModule
from hrnet_fast.training.structure_cache import NAMES

X = {"dtype": torch.float64}


def reference(head: str = "v2") -> Any:
    torch.manual_seed(0)
    return HRNetReference(tiny_config(head)).double()


def network_block(model: nn.Module) -> Any:
    return next(b for b in explain(model).blocks if b.kind == "network")


@pytest.mark.parametrize("memory", ["lean", "min"])
@pytest.mark.parametrize("head", ["v1", "v2", "face"])
def test_the_reference_network_is_accelerated(head: str, memory: str) -> None:
    plain = reference(head)
    fast = accelerated(plain, memory=memory)
    assert isinstance(fast, HRNetReference)
    assert isinstance(fast, FusedModule)
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert_trains_alike(fast, plain)
    assert_evaluates_alike(fast, plain, image(64, 96, **X))
    assert network_block(fast).fast
    assert not network_block(fast).reason


def test_stem_and_head_take_the_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = accelerated(reference()).eval()
    heads: list[object] = []
    run = fused_network.run_v2_head
    monkeypatch.setattr(fused_network, "run_v2_head", lambda *args: heads.append(args) or run(*args))
    monkeypatch.setattr(nn.Conv2d, "__call__", lambda *args: pytest.fail("a convolution ran on the plain path"))
    with torch.no_grad():
        fast(image(64, 64, **X))
    assert len(heads) == 1


@pytest.mark.slow
def test_accelerated_networks_are_copied_and_restored() -> None:
    fast = accelerated(reference())
    twin = copy.deepcopy(fast)
    assert type(twin) is type(fast)
    assert_trains_alike(twin, fast)
    assert type(restore(twin)) is HRNetReference
    model = hf.HRNet(tiny_config("v2"), impl="reference")
    assert type(model) is hf.HRNet
    assert type(restore(accelerate(model))) is hf.HRNet


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"head": "v2"}, {"head": "features", "feature_location": "incre"}])
def test_own_networks_are_accelerated_again_when_they_are_read(options: dict[str, Any]) -> None:
    """Whoever reads them has this package, and expects what building them gives."""
    model = accelerate(hf.HRNet(tiny_config(**options)), impl="reference", memory="min").double()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert str(explain(twin)) == str(explain(model))
        assert vars(twin).keys() - set(NAMES) == vars(model).keys() - set(NAMES)
        assert {m.fused_settings.memory for m in twin.modules() if isinstance(m, FusedModule)} == {"min"}
        assert_trains_alike(twin, copy.deepcopy(model))
    plain = pickle.loads(pickle.dumps(restore(model)))
    assert not any(isinstance(m, FusedModule) for m in plain.modules())


@pytest.mark.slow
def test_a_changed_stem_or_head_takes_the_plain_path() -> None:
    plain = reference()
    fast = accelerated(plain)
    assert_trains_alike(fast, plain)
    for model in (plain, fast):
        model.bn1.register_forward_hook(lambda module, args, out: 2.0 * out)
    assert_trains_alike(fast, plain)
    block = network_block(fast)
    assert "a hook is registered on its BatchNorm2d" in block.reason
    assert "(network): a hook" in str(explain(fast))
    for model in (plain, fast):
        model.last_layer[2] = nn.LeakyReLU(0.1)
    assert_trains_alike(fast, plain)
    assert "LeakyReLU is no ReLU" in network_block(fast).reason
    assert not network_block(fast).fast


def test_a_stem_whose_first_map_is_returned() -> None:
    torch.manual_seed(0)
    plain: Any = HRNetReference(tiny_config("features", feature_location="incre")).double()
    fast = accelerated(plain)
    assert type(fast) is HRNetReference
    assert_trains_alike(fast, plain)
    assert len(fast(image(64, 64, **X))) == 5


def test_the_environment_counts_when_a_network_is_accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_VAR, "reference")
    fast = accelerated(reference(), impl="auto").eval()
    monkeypatch.setenv(ENV_VAR, "triton" if not torch.cuda.is_available() else "cpu")
    assert isinstance(fast(image(64, 64, **X)), Tensor)
    assert explain(fast).impl == "reference"
    if not torch.cuda.is_available():
        with pytest.raises(hf.ImplementationError, match=f"{ENV_VAR}=triton cannot run here"):
            accelerated(reference(), impl="auto")
