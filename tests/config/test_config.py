"""HRNetConfig: validation, overrides, and conversion to and from plain data."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tiny_networks import tiny_config

import hrnet_fast as hf
from hrnet_fast.config import HEAD_ALIASES

PAIR = hf.StageConfig((4, 8), (1, 1))
FIRST = hf.StageConfig((4,), (1,), 1, "bottleneck")


def test_make_describes_the_papers_network() -> None:
    config = hf.HRNetConfig.make(32, "v1", 17)
    assert [stage.channels for stage in config.stages] == [(64,), (32, 64), (32, 64, 128), (32, 64, 128, 256)]
    assert [stage.num_modules for stage in config.stages] == [1, 1, 4, 3]
    assert [stage.block for stage in config.stages] == ["bottleneck", "basic", "basic", "basic"]
    assert all(set(stage.num_blocks) == {4} for stage in config.stages)
    assert (config.upsample, config.multiscale_output, config.head.num_outputs) == ("nearest", False, 17)
    assert config.stages[0].out_channels == (256,)
    assert config.out_channels == (32, 64, 128, 256)


def test_bottleneck_width_counts_output_channels() -> None:
    config = hf.HRNetConfig.make(44, "c", 1000, block="bottleneck")
    assert config.stages[1].channels == (11, 22)
    assert config.out_channels == (44, 88, 176, 352)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("v1", {"upsample": "nearest", "multiscale_output": False, "init": "normal"}),
        ("v2", {"upsample": "bilinear", "upsample_to": "target", "align_corners": False}),
        ("ocr", {"upsample": "bilinear", "align_corners": True}),
        ("face", {"upsample": "bilinear", "align_corners": False, "norm": hf.NormConfig(momentum=0.01)}),
        ("c", {"upsample": "nearest", "init": "kaiming", "multiscale_output": True}),
        ("v2p", {"upsample": "nearest", "init": "kaiming"}),
    ],
)
def test_defaults_follow_the_head(head: str, expected: dict[str, Any]) -> None:
    config = hf.HRNetConfig.make(18, head, 0 if head == "v2p" else 5)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(("alias", "kind"), HEAD_ALIASES.items())
def test_aliases(alias: str, kind: str) -> None:
    outputs = 0 if kind == "v2p" else 2
    assert hf.HRNetConfig.make(8, alias, outputs) == hf.HRNetConfig.make(8, kind, outputs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": (), "num_blocks": ()}, "at least one"),
        ({"channels": (4, 8), "num_blocks": (1,)}, "one entry per branch"),
        ({"channels": (0,), "num_blocks": (1,)}, r"channels\[0\]=0"),
        ({"channels": (4,), "num_blocks": (0,)}, r"num_blocks\[0\]=0"),
        ({"channels": (4.5,), "num_blocks": (1,)}, "integer"),
        ({"channels": (True,), "num_blocks": (1,)}, "integer"),
        ({"channels": (4,), "num_blocks": (1,), "num_modules": 0}, "num_modules=0"),
        ({"channels": (4,), "num_blocks": (1,), "block": "dense"}, "'basic', 'bottleneck'"),
    ],
)
def test_stage_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(hf.ConfigError, match=message):
        hf.StageConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "ln"}, "'ln'"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"groups": 0}, "groups=0"),
    ],
)
def test_norm_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(hf.ConfigError, match=message):
        hf.NormConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "v3"}, "'v3'"),
        ({"kernel_size": 5}, "kernel_size=5"),
        ({"num_outputs": -1}, "num_outputs=-1"),
        ({"num_outputs": 1.0}, "num_outputs=1.0"),
        ({"kind": "ocr"}, "give num_outputs"),
        ({"kind": "face"}, "give num_outputs"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"channels": -1}, "channels=-1"),
        ({"num_levels": 0}, "num_levels=0"),
        ({"key_channels": 0}, "key_channels=0"),
        ({"feature_location": "stem"}, "'stem'"),
        ({"ocr_outputs": "aux"}, "'aux'"),
    ],
)
def test_head_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(hf.ConfigError, match=message):
        hf.HeadConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": (FIRST,)}, "at least two"),
        ({"stages": (PAIR, PAIR)}, "one branch"),
        ({"stages": (hf.StageConfig((4,), (1,), 2), PAIR)}, "one module"),
        ({"stages": (FIRST, PAIR, FIRST)}, "must not shrink"),
        ({"upsample": "bicubic"}, "'bicubic'"),
        ({"upsample_to": "input"}, "'input'"),
        ({"fusion": "max"}, "'max'"),
        ({"fusion_units": "none"}, "'none'"),
        ({"downsample": "pool"}, "'pool'"),
        ({"init": "xavier"}, "'xavier'"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"stem_channels": 0}, "stem_channels=0"),
        ({"frozen_stages": 3}, "frozen_stages=3"),
        ({"frozen_stages": -2}, "frozen_stages=-2"),
        ({"multiscale_output": False, "head": hf.HeadConfig("v2", 3)}, "multiscale_output=True or head='v1'"),
        ({"head": hf.HeadConfig("features", out_indices=(0, 2))}, "from 0 to 1"),
        ({"head": hf.HeadConfig("features", out_indices=(0, 0))}, "distinct"),
        ({"head": hf.HeadConfig("features", out_indices=())}, "distinct"),
        ({"head": hf.HeadConfig("features", out_indices=(-1,))}, "distinct"),
        ({"head": hf.HeadConfig("features", out_indices=(3,), feature_location="incre")}, "from 0 to 2"),
        ({"head": hf.HeadConfig("features", out_indices=(1,)), "multiscale_output": False}, "from 0 to 0"),
    ],
)
def test_network_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(hf.ConfigError, match=message):
        hf.HRNetConfig(**({"stages": (FIRST, PAIR)} | values))


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"width": 3, "block": "bottleneck"},
        {"num_blocks": 0},
        {"stage1_channels": 0},
        {"block": "dense"},
        {"head": "v9"},
        {"num_modules": (1, 4)},
        {"num_branches": (2, 3)},
        {"num_branches": (4, 3, 2)},
        {"depth": 4},
    ],
)
def test_make_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(hf.ConfigError):
        hf.HRNetConfig.make(**options)


def test_config_errors_are_value_errors() -> None:
    assert issubclass(hf.ConfigError, ValueError)
    assert issubclass(hf.ConfigError, hf.HRNetFastError)


def test_incre_features_need_every_resolution() -> None:
    """The widening units take every branch, so a network that ends in one cannot have them."""
    with pytest.raises(hf.ConfigError, match="multiscale_output"):
        hf.HRNetConfig((FIRST, PAIR), hf.HeadConfig("features", feature_location="incre"), multiscale_output=False)


def test_override_reaches_head_and_norm() -> None:
    config = tiny_config("v1", 3)
    changed = config.override(num_outputs=5, bn_momentum=None, norm_eps=1e-3, align_corners=True, norm_kind="syncbn")
    assert changed.head == dataclasses.replace(config.head, num_outputs=5)
    assert changed.norm == hf.NormConfig("syncbn", None, 1e-3)
    assert changed.align_corners
    assert config == tiny_config("v1", 3), "the original is unchanged"
    assert config.override(norm="gn", norm_groups=2).norm == hf.NormConfig("gn", groups=2)
    assert config.override() == config


def test_override_names_what_it_does_not_know() -> None:
    with pytest.raises(hf.ConfigError, match=r"unknown option.*colour.*accepted are.*align_corners"):
        tiny_config().override(colour="red")


def test_override_checks_the_whole() -> None:
    with pytest.raises(hf.ConfigError, match="frozen_stages"):
        tiny_config().override(frozen_stages=5)


def test_override_can_change_the_head_and_its_outputs_together() -> None:
    changed = tiny_config("v2p").override(head="face", num_outputs=5)
    assert (changed.head.kind, changed.head.num_outputs) == ("face", 5)


@pytest.mark.parametrize("head", ["features", "v1", "ocr", "v2p", "face", "c"])
def test_dictionary_round_trip(head: str) -> None:
    config = tiny_config(head, norm_kind="gn", norm_groups=2, frozen_stages=1, init="kaiming")
    if head == "features":
        config = config.override(out_indices=(2, 0))
    assert hf.HRNetConfig.from_dict(config.to_dict()) == config
    assert hf.HRNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"stages": None},
        {"colour": "red"},
        {"head": {"kind": "v1", "colour": "red"}},
        {"norm": {"kind": "ln"}},
        {"stages": [{"channels": [4]}]},
    ],
)
def test_from_dict_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(hf.ConfigError):
        hf.HRNetConfig.from_dict(tiny_config().to_dict() | change)


def test_from_dict_needs_stages() -> None:
    with pytest.raises(hf.ConfigError, match="stages"):
        hf.HRNetConfig.from_dict({})
