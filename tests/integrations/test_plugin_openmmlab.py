"""The hook and the backbones of OpenMMLab's packages, in their own runner and registries."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from openmmlab_models import Detector, build, configuration, runner
from tiny_networks import enliven, gradients, image, relative_l2, train_once
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hrnet_fast as hf
from hrnet_fast.integrations import openmmlab
from hrnet_fast.integrations.openmmlab import PACKAGES, AccelerateHRNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def assert_trains_alike(fast: nn.Module, plain: nn.Module) -> None:
    x = image(64, 64, batch=2, dtype=torch.float64)
    for a, e in zip(train_once(fast, x), train_once(plain, x), strict=True):
        assert relative_l2(a, e) < 1e-10
    own, other = gradients(fast), gradients(plain)
    assert own.keys() == other.keys()
    assert all(relative_l2(own[k], other[k]) < 1e-8 for k in own)
    assert_states_alike(fast, plain)


def assert_states_alike(fast: nn.Module, plain: nn.Module) -> None:
    state = fast.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_one_word_of_a_configuration_accelerates(package: str) -> None:
    settings: dict[str, Any] = {"norm_eval": False, "zero_init_residual": True, "multiscale_output": True}
    if package == "mmpose":
        del settings["multiscale_output"]  # it is in `extra` there
    plain = build(package, type="HRNet", **settings)
    fast = build(package, type="HRNetFast", memory="min", **settings)
    assert type(fast) is type(plain)
    assert hf.explain(fast).fast >= 14
    for network in (fast, plain):
        torch.manual_seed(0)
        network.init_weights()
    assert_states_alike(fast, plain)
    assert_trains_alike(enliven(fast).double(), enliven(plain).double())


def test_frozen_stages_and_normalisations_stay_frozen() -> None:
    settings = {"norm_eval": True, "frozen_stages": 2, "norm_cfg": {"type": "BN", "requires_grad": True}}
    plain, fast = (build("mmpose", type=kind, **settings) for kind in ("HRNet", "HRNetFast"))
    assert_trains_alike(enliven(fast).double(), enliven(plain).double())
    assert not fast.stage2[0].branches[0][0].conv1.weight.requires_grad
    assert not any(m.training for m in fast.modules() if isinstance(m, nn.BatchNorm2d))


def test_pretrained_weights_are_loaded(tmp_path: Path) -> None:
    plain = enliven(build("mmpose", type="HRNet"))
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in plain.state_dict().items()}}, tmp_path / "w.pth")
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "w.pth"), "prefix": "backbone."}
    fast = build("mmpose", type="HRNetFast", init_cfg=init_cfg)
    fast.init_weights()
    assert hf.explain(fast).fast == 17
    assert_states_alike(fast, plain)


@pytest.mark.slow
def test_mmposes_own_configuration_builds() -> None:
    path = "body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py"
    config = configuration("mmpose", path).model.backbone
    config.update(type="HRNetFast", init_cfg=None)
    network = build("mmpose", **config)
    report = hf.explain(network)
    assert report.fast == len(report.blocks) == 39, str(report)


@pytest.mark.slow
def test_the_hook_accelerates_the_runners_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also the averages of EMAHook, which swaps parameters behind autograd's back, and a resumed run's weights."""
    ema = {"type": "EMAHook", "momentum": 0.5}
    states = []
    for name, hooks in (("plain", [ema]), ("fast", [ema, {"type": "AccelerateHRNet", "memory": "min"}])):
        model = Detector(build("mmdet", type="HRNet", norm_eval=False))
        training = runner(model, tmp_path / name, custom_hooks=hooks)
        training.logger.addHandler(caplog.handler)
        training.train()
        states.append(training.model)
    assert_states_alike(states[1], states[0])
    told = [r.message for r in caplog.records if "accelerate: " in r.message]
    assert told == ["accelerate: 17 of 17 blocks take the fused path (impl='auto')"]
    assert states[1].backbone.stage2[0].fused_settings.memory == "min"
    averages = torch.load(tmp_path / "fast" / "epoch_1.pth", weights_only=False)
    wanted = torch.load(tmp_path / "plain" / "epoch_1.pth", weights_only=False)
    for part in ("state_dict", "ema_state_dict"):
        assert averages[part].keys() == wanted[part].keys()
        assert all(torch.allclose(averages[part][k], wanted[part][k], rtol=1e-9, atol=1e-10) for k in wanted[part])


def test_a_replaced_forward_is_told() -> None:
    """mmengine's ``activation_checkpointing`` replaces the forward of the modules that it names."""
    network = build("mmdet", type="HRNet", norm_eval=False)
    turn_on_activation_checkpointing(network, ["layer1", "stage3.0"])
    AccelerateHRNet().before_train(SimpleNamespace(model=network))
    plain = {b.name: b.reason for b in hf.explain(network).blocks if not b.fast}
    assert plain == dict.fromkeys(("layer1", "stage3.0"), "its forward was replaced")


def test_the_hook_takes_a_wrapped_model(tmp_path: Path) -> None:
    """The gradients of an accelerated model arrive where the wrapper that was made before expects them."""
    plain = enliven(build("mmdet", type="HRNet", norm_eval=False)).double()
    fast = enliven(build("mmdet", type="HRNet", norm_eval=False)).double()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(fast)
        AccelerateHRNet().before_train(SimpleNamespace(model=wrapped))
        x = image(64, 64, batch=2, dtype=torch.float64)
        train_once(wrapped, x)
        assert hf.explain(wrapped).fast == 17
    finally:
        torch.distributed.destroy_process_group()
    train_once(plain, x)
    own, other = gradients(fast), gradients(plain)
    assert all(relative_l2(own[k], other[k]) < 1e-8 for k in other)


def test_packages_that_are_absent_or_broken_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an installed one whose own checks of versions fail."""
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("assert False, 'another mmcv, please'", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(openmmlab, "PACKAGES", ("absent_package", "broken_package", "mmdet"))
    models = importlib.import_module("mmdet.registry").MODELS
    before = models.module_dict.pop("HRNetFast")
    openmmlab._register()
    assert models.module_dict["HRNetFast"] is not before


def test_wrong_options_are_named() -> None:
    with pytest.raises(TypeError, match="memroy"):
        AccelerateHRNet(memroy="min")
    with pytest.raises(hf.InputError, match="memory='most'"):
        build("mmpose", type="HRNetFast", memory="most")
