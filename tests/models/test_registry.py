"""Named networks, and how their implementation is chosen."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import image, tiny, tiny_config
from torch import nn

import hrnet_fast as hf
from hrnet_fast import implementations
from hrnet_fast.implementations import ENV_VAR, NAMES, describe, resolve
from hrnet_fast.models.registry import get_variant


def test_lists_are_sorted_and_filtered() -> None:
    names = hf.list_models()
    assert names == sorted(set(names))
    assert len(names) > 50
    assert hf.list_models("*pose*") == [n for n in names if "pose" in n]
    assert hf.list_models("hrnet_w48_?") == ["hrnet_w48_c"]
    assert hf.list_models("none*") == []


@pytest.mark.parametrize("name", hf.list_models())
def test_every_name_describes_a_network(name: str) -> None:
    variant = get_variant(name)
    config = hf.get_config(name)
    assert variant.name == name
    assert variant.description
    assert config == variant.make()
    assert config.head.num_outputs > 0 or config.head.kind in ("features", "v2p")
    multiple = 4 * 2 ** (config.stages[-1].num_branches - 1)
    if config.upsample_to == "scale":
        assert all(side % multiple == 0 for side in variant.input_size), "its own input must fit"
    assert hf.HRNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "head", "outputs"),
    [
        ("hrnetv1_w32_pose", "v1", 17),
        ("hrnetv2_w48_seg", "v2", 19),
        ("hrnetv2_w48_seg_ocr", "ocr", 19),
        ("hrnetv2p_w32_det", "v2p", 0),
        ("hrnet_w18_c", "c", 1000),
        ("hrnet_w18_small_v2", "c", 1000),
        ("hrnetv2_w18_face_wflw", "face", 98),
        ("hrnet_w44_c_bottleneck", "c", 1000),
        ("hrnet_w36_ci", "ci", 1000),
        ("hrnet_w34_cii", "cii", 1000),
        ("hrnet_w32_features", "features", 0),
    ],
)
def test_names_mean_what_they_say(name: str, head: str, outputs: int) -> None:
    config = hf.get_config(name)
    assert (config.head.kind, config.head.num_outputs) == (head, outputs)


def test_create_model() -> None:
    model = hf.create_model("hrnet_w18_small", num_outputs=7, in_channels=1, bn_momentum=0.3)
    assert isinstance(model, hf.HRNet)
    assert model.training
    assert model.family is None
    assert model.classifier.out_features == 7
    assert model.conv1.in_channels == 1
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.3}
    assert model.eval()(image(channels=1)).shape == (1, 7)


def test_options_beside_a_config_change_it() -> None:
    config = tiny_config("v1")
    assert hf.HRNet(config, num_outputs=5, align_corners=True).config == config.override(
        num_outputs=5, align_corners=True
    )
    with pytest.raises(hf.ConfigError, match=r"unknown option.*width"):
        hf.HRNet(config, width=8)


def test_unknown_names_offer_near_ones() -> None:
    for action in (hf.create_model, hf.get_config):
        with pytest.raises(hf.ConfigError, match=r"'hrnet_w32_pose'.*hrnetv1_w32_pose.*list_models\(\)"):
            action("hrnet_w32_pose")
    with pytest.raises(hf.ConfigError, match="Near: none"):
        hf.get_config("####")


def test_unknown_overrides() -> None:
    for action in (hf.create_model, hf.get_config):
        with pytest.raises(hf.ConfigError, match=r"unknown option.*colour"):
            action("hrnetv1_w32_pose", colour="red")


def test_lazy_names() -> None:
    assert set(hf.__all__) <= set(dir(hf))
    for name in hf.__all__:
        assert getattr(hf, name) is not None
    with pytest.raises(AttributeError, match="colour"):
        hf.colour  # noqa: B018


def test_the_reference_runs_everywhere() -> None:
    assert resolve("reference") == "reference"
    assert describe("reference").usable


def test_auto_picks_something_usable() -> None:
    assert describe(resolve()).usable
    assert hf.HRNet(tiny_config()).impl == resolve("auto")


def test_the_environment_decides_where_the_call_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_VAR, "reference")
    assert resolve() == "reference"
    monkeypatch.setenv(ENV_VAR, "")
    assert describe(resolve()).usable
    monkeypatch.setenv(ENV_VAR, "tpu")
    with pytest.raises(hf.ImplementationError, match=f"{ENV_VAR}=tpu is not one of auto, reference"):
        hf.HRNet(tiny_config())
    assert hf.HRNet(tiny_config(), impl="reference").impl == "reference"


def test_unknown_implementations() -> None:
    with pytest.raises(hf.ImplementationError, match="impl='tpu' is not one of auto, reference, cpu, triton, cuda"):
        resolve("tpu")


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_named_implementations_never_fall_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not describe(name).usable
    state = tiny().state_dict()
    actions = (
        resolve,
        lambda impl: hf.HRNet(tiny_config(), impl=impl),
        lambda impl: hf.create_model("hrnetv1_w32_pose", impl=impl),
        lambda impl: hf.load_checkpoint(state, impl=impl),
        lambda impl: hf.HRNet.from_config(
            {"MODEL": {"NAME": "cls_hrnet", "EXTRA": {"STAGE2": {
                "NUM_MODULES": 1, "NUM_BLOCKS": [1], "NUM_CHANNELS": [4], "BLOCK": "BASIC"}}}}, impl=impl),
    )  # fmt: skip
    for action in actions:
        with pytest.raises(hf.ImplementationError, match=f"impl='{name}' cannot run here.*'reference'"):
            action(name)
    monkeypatch.setenv(ENV_VAR, name)
    with pytest.raises(hf.ImplementationError, match=f"{ENV_VAR}={name} cannot run here"):
        hf.HRNet(tiny_config())


def test_without_the_compiled_extension_its_operators_are_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations, "build_info", lambda: None)
    for name in ("cpu", "cuda"):
        assert not describe(name).usable
        with pytest.raises(hf.ImplementationError, match="not built"):
            resolve(name)
    assert resolve() == "reference"


@pytest.mark.parametrize("name", NAMES)
def test_every_implementation_says_why(name: str) -> None:
    found = describe(name)
    assert found.name == name
    assert found.reason
