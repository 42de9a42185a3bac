"""Trunks inside larger checkpoints: found, distinguished, loaded, converted; heads that fit in part."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from family_states import State, assert_equal_states, run, state_of
from tiny_networks import image, tiny
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.cli import main

# Where other code bases keep an HRNet, and keys that stand beside it there.
INSIDE: dict[str, tuple[str, tuple[str, ...]]] = {
    "bare, DEKR": ("", ("transition_heatmap.0.weight", "head_heatmap.0.0.conv1.weight", "offset_final_layer.0.weight")),
    "bare, HRNet-like names beside": ("", ("stages.0.weight", "transition_offset.0.weight", "conv10.weight")),
    "Lightning": ("net.", ("metric.total",)),
    "segmentation_models_pytorch": ("encoder.", ("decoder.blocks.0.conv1.0.weight", "segmentation_head.0.weight")),
    "its timm encoders": ("encoder.model.", ("encoder.model.incre_modules.0.0.conv1.weight", "decoder.p5.weight")),
    "distillation": ("student.", ("teacher.layer1.0.conv1.weight", "teacher.fc.weight")),
    "DeepSpeed": ("_forward_module.", ("_forward_module.head.weight",)),
    "a wrapped mm backbone": ("backbone.model.", ("roi_head.bbox_head.fc_cls.weight",)),
    "CID": ("backbone.", ("head.gfd_module.conv_down.weight", "head.iia_module.keypoint_root_conv.weight")),
}


@functools.cache
def trunk_of_a_classifier() -> Mapping[str, Tensor]:
    return MappingProxyType(hf.convert_checkpoint(state_of("cls"), to="backbone"))


def inside(name: str, trunk: Mapping[str, Tensor] | None = None) -> State:
    prefix, beside = INSIDE[name]
    trunk = trunk_of_a_classifier() if trunk is None else trunk
    return {prefix + k: v for k, v in trunk.items()} | {k: torch.full((2, 2), 9.0) for k in beside}


@pytest.mark.slow
@pytest.mark.parametrize("name", INSIDE)
def test_the_trunk_is_found(name: str) -> None:
    trunk = trunk_of_a_classifier()
    source = inside(name)
    assert_equal_states(hf.convert_checkpoint(source, to="backbone"), trunk)
    assert_equal_states(hf.convert_checkpoint(source, to="mm_backbone"), {f"backbone.{k}": v for k, v in trunk.items()})
    loaded = hf.load_checkpoint(source, part="backbone")
    assert_equal_states(loaded.state_dict(), trunk)
    assert loaded.family == "backbone"
    beside = INSIDE[name][1]
    assert any(f"left out {len(beside)} entries beside the trunk" in note for note in loaded.notes)
    assert all(any(key.split(".")[0] in note for note in loaded.notes) for key in beside)
    model = hf.load_backbone(tiny("v2", 5), source)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in trunk.items())


@pytest.mark.parametrize("name", INSIDE)
def test_a_whole_that_is_no_family_says_what_it_is(name: str) -> None:
    with pytest.raises(hf.CheckpointError, match=r"part='backbone'") as caught:
        hf.load_checkpoint(inside(name))
    message = str(caught.value)
    prefix, beside = INSIDE[name]
    assert "does not fit" in message or (f"trunk of width 4 under {prefix!r}" in message and "load_backbone" in message)
    assert any(part in message for key in beside for part in key.split(".")[:2])


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["net.", "student.", "encoder.model."])
@pytest.mark.parametrize("family", ["pose", "seg_ocr", "mmseg", "mmdet"])
def test_a_whole_network_under_another_name(prefix: str, family: str) -> None:
    state = state_of(family)
    assert_equal_states(hf.convert_checkpoint({prefix + k: v for k, v in state.items()}, to=family), state)
    assert hf.load_checkpoint({prefix + k: v for k, v in state.items()}, family=family).family == family


@pytest.mark.slow
def test_two_trunks_are_named() -> None:
    a, b = trunk_of_a_classifier(), {k: v + 1 for k, v in state_of("backbone").items()}
    both = {f"teacher.{k}": v for k, v in a.items()} | {f"student.net.{k}": v for k, v in b.items()}
    for action in (
        lambda: hf.load_checkpoint(both),
        lambda: hf.load_checkpoint(both, part="backbone"),
        lambda: hf.convert_checkpoint(both, to="backbone"),
        lambda: hf.load_backbone(tiny("v1"), both),
        lambda: hf.load_checkpoint(both, part="ema"),
    ):
        with pytest.raises(hf.CheckpointError, match=r"'teacher\.', 'student\.net\.'"):
            action()
    for part in ("teacher", "teacher."):
        assert_equal_states(hf.load_checkpoint(both, part=part).state_dict(), a)
    assert_equal_states(hf.load_checkpoint(both, part="student.net.").state_dict(), b)
    filled = hf.load_backbone(tiny("v2", 5), both, part="teacher").state_dict()
    assert all(torch.equal(filled[k], v) for k, v in a.items())


def test_a_trunk_without_a_prefix_beside_another() -> None:
    trunk = state_of("backbone")
    both = trunk | {f"teacher.{k}": v for k, v in trunk.items()}
    with pytest.raises(hf.CheckpointError, match=r"'', 'teacher\.'"):
        hf.load_checkpoint(both, part="backbone")
    assert_equal_states(hf.load_checkpoint(both, part="").state_dict(), trunk)


@pytest.mark.parametrize("part", ["backbone", "net"])
def test_networks_without_a_trunk(part: str) -> None:
    hrformer = {"stage2.0.branches.0.0.attn.attn.relative_position_bias_table": torch.ones(3)}
    for source in ({"layer1.0.conv1.weight": torch.ones(2, 2, 1, 1)}, hrformer):
        with pytest.raises(hf.CheckpointError, match="No HRNet found"):
            hf.load_checkpoint(source, part=part)


def test_a_broken_trunk_is_refused_whatever_is_beside() -> None:
    source = inside("segmentation_models_pytorch")
    del source["encoder.stage3.0.branches.1.0.bn2.weight"]
    with pytest.raises(hf.CheckpointError, match="does not fit") as caught:
        hf.load_checkpoint(source, part="backbone")
    assert caught.value.missing == ("stage3.0.branches.1.0.bn2.weight",)


@pytest.mark.parametrize("family", ["seg", "mmseg", "seg_ocr", "face", "openseg"])
def test_trunks_interpolate_as_their_family_does(family: str) -> None:
    state = state_of(family)
    whole, trunk = hf.load_checkpoint(state), hf.load_checkpoint(state, part="backbone")
    for name in ("upsample", "upsample_to", "align_corners"):
        assert getattr(trunk.config, name) == getattr(whole.config, name)
    assert trunk.config.norm == whole.config.norm
    x = image(65, 97)
    with torch.no_grad():
        for a, e in zip(run(trunk, x), whole.forward_features(x), strict=True):
            torch.testing.assert_close(a, e)


def test_csails_encoder() -> None:
    state = state_of("csail")
    loaded = hf.load_checkpoint(state)
    assert loaded.family == "csail"
    assert any("_running_iter" in note for note in loaded.notes)
    trunk = hf.load_checkpoint({f"encoder.{k}": v for k, v in state.items()}, part="backbone")
    for model in (loaded, trunk):
        assert (model.config.upsample, model.config.upsample_to) == ("bilinear", "target")
        assert set(model.state_dict()) == {k for k in state if "._" not in k}
    filled = hf.load_backbone(tiny("v2", 5), state)
    assert torch.equal(filled.conv1.weight, state["conv1.weight"])
    assert any("_running_iter" in note for note in filled.notes)


@pytest.mark.parametrize("prefix", ["", "net.", "model.net."])
def test_in_place_normalisation_under_a_prefix(prefix: str) -> None:
    state = {prefix + k.replace("cls_head.1.0.", "cls_head.1."): v for k, v in state_of("openseg").items()}
    with pytest.raises(hf.CheckpointError, match="InPlaceABN"):
        hf.load_checkpoint(state, part="backbone")
    assert hf.load_checkpoint(state, part="backbone", torch04=True).config.align_corners


def test_a_linear_class_head_is_no_in_place_normalisation() -> None:
    state = state_of("mm_backbone") | {"cls_head.1.weight": torch.ones(10, 32), "cls_head.1.bias": torch.ones(10)}
    trunk = hf.load_checkpoint(state, part="backbone")
    assert torch.equal(trunk.bn1.weight, state["backbone.bn1.weight"])


def test_openseg_wraps_with_its_configuration() -> None:
    state = state_of("openseg")
    wrapped = {
        "config_dict": {"network": {"backbone": "hrnet48"}},
        "state_dict": {f"module.{k}": v for k, v in state.items()},
    }
    assert hf.load_checkpoint(wrapped).family == "openseg"


@pytest.mark.parametrize("prefix", ["", "net.", "student.", "model.net."])
def test_signs_beside_a_network_under_a_prefix(prefix: str) -> None:
    state = state_of("mmdet") | {"bbox_head.conv_centerness.weight": torch.zeros(1, 16, 3, 3)}
    loaded = hf.load_checkpoint({prefix + k: v for k, v in state.items()})
    assert loaded.config.head.pyramid_stride == 2


def test_what_a_converted_file_does_not_say_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    fcos = state_of("mmdet") | {"bbox_head.conv_centerness.weight": torch.zeros(1, 16, 3, 3)}
    for source, target, told in (
        (fcos, "det", "pyramid_stride=2 is not in the file"),
        (state_of("seg_ocr"), "mmseg_ocr", "align_corners=False, this network with the other"),
        (state_of("mmpose_face"), "face", "'face', this network by 'msra'"),
    ):
        with caplog.at_level(logging.WARNING, "hrnet_fast.checkpoints"):
            written = hf.convert_checkpoint(source, to=target)
        assert told in caplog.text
        caplog.clear()
        if target == "det":
            assert any("pyramid_stride=2" in line for line in hf.load_checkpoint(written).assumptions)


def test_one_of_several_trunks_is_converted() -> None:
    trunk = trunk_of_a_classifier()
    both = {f"{p}.{k}": v + i for i, p in enumerate(("teacher", "student")) for k, v in trunk.items()}
    assert torch.equal(
        hf.convert_checkpoint(both, to="backbone", part="student")["conv1.weight"], trunk["conv1.weight"] + 1
    )
    with pytest.raises(hf.CheckpointError, match="names a trunk"):
        hf.convert_checkpoint(state_of("pose"), to="mmpose", part="student")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("pose", {"dropout": 0.5}),
        ("pose", {"out_indices": (0,)}),
        ("pose", {"pyramid_stride": 2}),
        ("pose", {"align_corners": True}),
        ("seg", {"ocr_outputs": "main"}),
        ("det", {"num_outputs": 5}),
        ("seg", {"part": "backbone", "num_outputs": 5}),
        ("seg", {"part": "backbone", "head": "keep"}),
    ],
)
def test_settings_without_effect_are_refused(family: str, options: dict[str, Any]) -> None:
    with pytest.raises(hf.ConfigError, match=f"{next(reversed(options))}.*(without effect|takes a trunk)"):
        hf.load_checkpoint(state_of(family), **options)
    if "part" not in options:  # what changes nothing may be said
        same = {"align_corners": False} if "align_corners" in options else {}
        hf.load_checkpoint(state_of(family), **same)


@pytest.mark.slow
def test_trunks_of_other_channels() -> None:
    loaded = hf.load_checkpoint(inside("its timm encoders"), part="backbone", in_channels=1)
    assert loaded.conv1.weight.shape[1] == 1


def test_another_number_of_keypoints_has_as_many_tags() -> None:
    assert hf.get_config("higher_hrnet_w32", num_outputs=14).head.tags == (14, 0)
    loaded = hf.load_checkpoint(
        state_of("higher_hrnet", tags=(3, 0), deconvs=({"channels": 4},)), num_outputs=5, head="keep"
    )
    assert [m.shape[1] for m in run(loaded, image())] == [10, 5]


def test_a_layer_of_which_a_part_has_no_place_is_drawn() -> None:
    loaded = hf.load_checkpoint(state_of("seg"), head="keep", conv_bias=False)
    assert not torch.equal(loaded.last_layer[0].weight, state_of("seg")["last_layer.0.weight"])


def test_load_backbone_takes_trunks_only() -> None:
    with pytest.raises(hf.CheckpointError, match="takes a trunk"):
        hf.load_backbone(tiny("v2"), state_of("seg"), part="whole")


def test_a_named_family_decides_how_a_trunk_interpolates() -> None:
    trunk = state_of("backbone")
    assert hf.load_checkpoint(trunk, part="backbone").config.upsample == "nearest"
    assert hf.load_checkpoint(trunk, part="backbone", family="seg").config.upsample == "bilinear"
    changed = hf.load_checkpoint(trunk, part="backbone", upsample="bilinear", upsample_to="target")
    assert (changed.config.upsample, changed.config.upsample_to) == ("bilinear", "target")


def test_torch04_scales_of_a_trunk() -> None:
    state = {k: -v if k.endswith("bn1.weight") else v for k, v in state_of("seg").items()}
    trunk = hf.load_checkpoint(state, part="backbone", torch04=True).state_dict()
    assert torch.equal(trunk["bn1.weight"], (-state["bn1.weight"].double() + 1e-5).float())
    with pytest.raises(hf.CheckpointError, match="torch04"):
        hf.load_checkpoint(state_of("cls"), part="backbone", torch04=True)


@pytest.mark.parametrize("family", ["openseg", "openseg_ocr"])
def test_in_place_normalisation_is_not_read_as_ordinary(family: str) -> None:
    state = {k.replace("cls_head.1.0.", "cls_head.1.").replace("conv3x3.1.0.", "conv3x3.1."): v
             for k, v in state_of(family).items()}  # fmt: skip
    for options in ({}, {"part": "backbone"}, {"torch04": True}):
        with pytest.raises(hf.CheckpointError, match=r"InPlaceABN.*part='backbone', torch04=True"):
            hf.load_checkpoint(state, **options)
    trunk = hf.load_checkpoint(state, part="backbone", torch04=True)
    assert trunk.config.align_corners
    assert torch.equal(trunk.bn1.weight, (state["backbone.bn1.weight"].double().abs() + 1e-5).float())


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["keep", "drop"])
@pytest.mark.parametrize("family", ["pose", "seg_ocr", "cls", "mmpose_face"])
def test_another_number_of_outputs(family: str, keep: str) -> None:
    state = state_of(family)
    with pytest.raises(hf.CheckpointError, match=r"head='keep'.*head='drop'.*load_backbone"):
        hf.load_checkpoint(state, num_outputs=7)
    torch.manual_seed(1)
    loaded = hf.load_checkpoint(state, num_outputs=7, head=keep)
    own, before = loaded.state_dict(), hf.load_checkpoint(state).state_dict()
    fits = {k for k in own if own[k].shape == before[k].shape}
    layers = {k.rpartition(".")[0] for k in set(own) - fits}
    assert layers, "the layer of the outputs differs"
    assert all(torch.isfinite(v).all() for v in own.values())
    trunk = set(hf.convert_checkpoint(state, to="backbone"))
    for key, value in own.items():
        kept = key in trunk or (keep == "keep" and key.rpartition(".")[0] not in layers)
        if kept:
            assert torch.equal(value, before[key]), key
        elif not key.endswith(("running_mean", "num_batches_tracked")) and key in fits:
            assert not torch.equal(value, before[key]), key
    assert any(f"head={keep!r}: drawn at random" in note for note in loaded.notes)


def test_a_layer_is_taken_whole() -> None:
    """17 outputs become 3: the old bias would fit nothing that the new weight computes."""
    state = state_of("cls", num_outputs=3)
    state["classifier.weight"] = torch.ones(5, 2048)
    loaded = hf.load_checkpoint(state, num_outputs=3, head="keep")
    assert not torch.equal(loaded.classifier.bias, state["classifier.bias"])


def test_heads_that_fit_are_not_noted() -> None:
    assert hf.load_checkpoint(state_of("seg"), head="keep").notes == ()


@pytest.mark.parametrize("head", ["features", "whole", ""])
def test_other_values_of_head(head: Any) -> None:
    with pytest.raises(hf.ConfigError, match="exact, keep, drop"):
        hf.load_checkpoint(state_of("pose"), head=head)


@pytest.mark.slow
def test_timm_classification_and_features() -> None:
    whole = state_of("cls", num_outputs=1000)
    features = hf.convert_checkpoint(whole, to="timm_features")
    assert set(features) < set(whole)
    assert {k.split(".")[0] for k in set(whole) - set(features)} == {"downsamp_modules", "final_layer", "classifier"}
    assert hf.load_checkpoint(features).family == "timm_features"
    back = hf.convert_checkpoint(features, to="timm")
    assert {k: tuple(v.shape) for k, v in back.items()} == {k: tuple(v.shape) for k, v in whole.items()}
    assert all(torch.equal(back[k], v) for k, v in features.items())
    x = image(64, 64)
    classifier = hf.load_checkpoint(whole)
    with torch.no_grad():
        branches = classifier.forward_features(x)
        widened = [unit(b) for unit, b in zip(classifier.incre_modules, branches, strict=True)]
    for a, e in zip(run(hf.load_checkpoint(features), x)[1:], widened, strict=True):
        torch.testing.assert_close(a, e)


def test_what_stays_random_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hrnet_fast.checkpoints"):
        hf.convert_checkpoint(state_of("timm_features"), to="cls")
    assert "drawn at random: downsamp_modules., final_layer., classifier." in caplog.text


@pytest.mark.parametrize(("source", "target"), [("seg", "openseg"), ("openseg", "seg"), ("seg_ocr", "openseg_ocr"),
                                                ("openseg_ocr", "mmseg_ocr"), ("backbone", "timm_features"),
                                                ("timm_features", "backbone_of_nobody")])  # fmt: skip
def test_heads_that_a_code_base_cannot_have_are_not_written(source: str, target: str) -> None:
    with pytest.raises(hf.CheckpointError, match=r"cannot be written as|is not one of"):
        hf.convert_checkpoint(state_of(source), to=target)


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "smp.pth", tmp_path / "trunk.pth"
    torch.save({"state_dict": inside("its timm encoders")}, source)
    command_line("convert", source, target, "--to", "backbone")
    assert hf.load_checkpoint(target).family == "backbone"
    assert command_line("info", source) == 2
    assert "part='backbone'" in capsys.readouterr().err
    assert command_line("info", source, "--part", "backbone", "--json") == 0
    assert '"family": "backbone"' in capsys.readouterr().out


def command_line(*words: object) -> Any:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code or 0
