"""Loading: wrappers, entries that are left out, overrides, incomplete files, filling a trunk."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_states import State, assert_equal_states, old_imagenet_head, state_of
from tiny_networks import image, tiny
from torch import Tensor

import hrnet_fast as hf

COUNTER = "num_batches_tracked"


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + k: v for k, v in state.items()}


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s},
    "model": lambda s: {"model": s},
    "model_state_dict": lambda s: {"epoch": 1, "model_state_dict": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module.": prefixed("module."),
    "model.": prefixed("model."),
    "module.model.": prefixed("module.model."),
    "_orig_mod.": prefixed("_orig_mod."),
    "_orig_mod.module.": prefixed("_orig_mod.module."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "training": lambda s: {
        "epoch": 210,
        "best_perf": 0.744,
        "state_dict": prefixed("module.")(s),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": None,
    },
    "openmmlab": lambda s: {"meta": {"epoch": 3, "CLASSES": ("a", "b")}, "state_dict": s, "optimizer": {}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", ["pose", "seg_ocr", "mmseg", "mmdet"])
def test_wrappers(family: str, wrapper: str) -> None:
    state = state_of(family)
    assert_equal_states(hf.convert_checkpoint(WRAPPERS[wrapper](state), to=family), state)


def test_entries_that_are_no_tensors_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hrnet_fast.checkpoints"):
        loaded = hf.load_checkpoint(state_of("pose") | {"epoch": 3, "arch": "hrnet"})
    assert any("epoch" in note and "arch" in note for note in loaded.notes)
    assert "epoch" in caplog.text


def test_the_loss_of_a_full_training_module_is_dropped() -> None:
    state = state_of("seg")
    full = prefixed("model.")(state) | {"loss.criterion.weight": torch.ones(3)}
    for source in (full, prefixed("module.")(full), {"state_dict": full}):
        loaded = hf.load_checkpoint(source)
        assert any("loss.criterion.weight" in note for note in loaded.notes)
        assert_equal_states(loaded.state_dict(), state)


def test_preprocessors_are_dropped() -> None:
    extra = {"data_preprocessor.mean": torch.zeros(3, 1, 1), "data_preprocessor.std": torch.ones(3, 1, 1)}
    loaded = hf.load_checkpoint(state_of("mmpose") | extra)
    assert any("data_preprocessor.mean" in note for note in loaded.notes)


@pytest.mark.parametrize("family", ["mmdet", "mmdet_1x", "det"])
def test_detectors_beside_the_network_are_left_out(family: str) -> None:
    extra = {"rpn_head.rpn_conv.weight": torch.ones(2, 2, 3, 3), "roi_head.bbox_head.fc_cls.bias": torch.ones(81)}
    loaded = hf.load_checkpoint(state_of(family) | extra)
    assert loaded.family == family
    assert any("left out 2" in note and "roi_head" in note and "rpn_head" in note for note in loaded.notes)


def test_auxiliary_segmentation_heads_are_left_out() -> None:
    loaded = hf.load_checkpoint(state_of("mmseg") | {"auxiliary_head.conv_seg.weight": torch.ones(3, 4, 1, 1)})
    assert any("auxiliary_head" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("family", "biases"),
    [
        ("seg", ("last_layer.0.bias",)),
        ("seg_ocr", ("aux_head.0.bias", "conv3x3_ocr.0.bias")),
        ("face", ("head.0.bias",)),
        ("mmpose_face", ("head.conv_layers.0.bias",)),
        ("mmpose_0x_face", ("keypoint_head.final_layer.0.bias",)),
    ],
)
def test_a_head_without_its_bias_is_noted(
    family: str, biases: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    whole = state_of(family)
    assert set(biases) < set(whole)
    assert hf.load_checkpoint(whole).notes == ()
    with caplog.at_level(logging.WARNING, "hrnet_fast.checkpoints"):
        loaded = hf.load_checkpoint({k: v for k, v in whole.items() if k not in biases})
    assert loaded.family == family
    assert not loaded.config.head.conv_bias
    (note,) = loaded.notes
    assert "no bias" in note
    assert note in caplog.text


@pytest.mark.parametrize("family", ["mmseg", "mmseg_ocr", "cls"])
def test_heads_that_need_no_bias_are_not_noted(family: str) -> None:
    assert hf.load_checkpoint(state_of(family, conv_bias=False)).notes == ()


def test_old_imagenet_files_are_backbones() -> None:
    state = state_of("pose_imagenet")
    loaded = hf.load_checkpoint(state)
    assert loaded.family == "pose_imagenet"
    assert [tuple(m.shape[1:]) for m in loaded(image())] == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]
    assert any(f"left out {len(old_imagenet_head())}" in note for note in loaded.notes)


@pytest.mark.parametrize("classifier", [True, False])
def test_a_pose_net_beside_the_old_imagenet_head_is_a_pose_net(classifier: bool) -> None:
    state = state_of("pose")
    old = {k: v for k, v in old_imagenet_head().items() if classifier or not k.startswith("classifier.")}
    for source in (state | old, old | state):
        loaded = hf.load_checkpoint(source)
        assert loaded.family == "pose"
        assert_equal_states(loaded.state_dict(), state)
        assert any(f"left out {len(old)}" in note and "head" in note for note in loaded.notes)


@pytest.mark.parametrize("family", ["face", "seg"])
def test_other_networks_beside_the_old_imagenet_head_are_refused(family: str) -> None:
    with pytest.raises(hf.CheckpointError, match=rf"family '{family}'.*\n.*unexpected.*head\.0\.0\.0\.") as caught:
        hf.load_checkpoint(old_imagenet_head() | state_of(family))
    assert "head.0.0.0.conv1.weight" in caught.value.unexpected


def test_a_pose_nets_face_head_is_not_left_out() -> None:
    with pytest.raises(hf.CheckpointError, match="'face' head"):
        hf.load_checkpoint(state_of("pose") | {k: v for k, v in state_of("face").items() if k.startswith("head.")})


def test_files_older_than_the_counters() -> None:
    state = {k: v for k, v in state_of("seg").items() if not k.endswith(COUNTER)}
    loaded = hf.load_checkpoint(state)
    assert loaded.bn1.num_batches_tracked == 0
    assert_equal_states(hf.convert_checkpoint(state, to="seg"), state)


def test_some_counters_missing() -> None:
    state = state_of("seg")
    del state["bn2.num_batches_tracked"]
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load_checkpoint(state)
    assert caught.value.missing == ("bn2.num_batches_tracked",)


def test_everything_wrong_is_listed_at_once() -> None:
    state = state_of("mmseg")
    for i in range(3):
        del state[f"backbone.stage3.0.branches.{i}.0.conv2.weight"]
    state["decode_head.extra.weight"] = torch.ones(1)
    state["backbone.bn1.bias"] = torch.ones(9)
    with pytest.raises(hf.CheckpointError) as caught:
        hf.load_checkpoint(state)
    error = caught.value
    assert error.missing == tuple(f"stage3.0.branches.{i}.0.conv2.weight" for i in range(3))
    assert error.unexpected == ("decode_head.extra.weight",)
    assert error.mismatched == (("bn1.bias", (9,), (8,)),)
    for text in ("missing (3)", "unexpected (1)", "mis-shaped (1)", "[9] given, [8] needed", "Nothing was loaded"):
        assert text in str(error)


def test_long_lists_are_cut_in_the_message_only() -> None:
    state = {k: v for k, v in state_of("pose").items() if not k.endswith("bias") or k == "final_layer.bias"}
    with pytest.raises(hf.CheckpointError, match=r"and \d+ more") as caught:
        hf.load_checkpoint(state)
    assert len(caught.value.missing) > 20


@pytest.mark.parametrize("key", ["conv1.weight", "layer1.0.conv1.weight", "stage2.0.branches.1.0.conv1.weight"])
def test_keys_that_decide_the_shape(key: str) -> None:
    state = state_of("pose")
    del state[key]
    with pytest.raises(hf.CheckpointError, match=key) as caught:
        hf.load_checkpoint(state)
    assert key in caught.value.missing


def test_two_names_for_one_tensor() -> None:
    """A key in both spellings is no reason to drop one of the two without a word."""
    state = state_of("mmpose")
    with pytest.raises(hf.CheckpointError, match=r"conv1\.weight"):
        hf.load_checkpoint(state | {"conv1.weight": torch.zeros_like(state["backbone.conv1.weight"])})


def test_the_trunks_prefix_is_needed_throughout() -> None:
    state = state_of("mmpose")
    state["conv1.weight"] = state.pop("backbone.conv1.weight")
    with pytest.raises(hf.CheckpointError, match=r"conv1\.weight"):
        hf.load_checkpoint(state)


@pytest.mark.parametrize(
    ("family", "own", "canonical"),
    [
        ("mmseg", "decode_head.conv_seg.weight", "last_layer.3.weight"),
        ("mmseg_ocr", "decode_head.1.conv_seg.bias", "cls_head.bias"),
        ("mmpose", "head.final_layer.bias", "final_layer.bias"),
        ("mmpose_0x_face", "keypoint_head.final_layer.1.weight", "head.1.weight"),
        ("det", "neck.reduction_conv.0.bias", "neck.reduction_conv.conv.bias"),
    ],
)
def test_the_heads_names_are_one_familys(family: str, own: str, canonical: str) -> None:
    """A head's key under the authors' name in an mm* file: the strict comparison alone would let it pass."""
    state = state_of(family)
    state[canonical] = state.pop(own)
    with pytest.raises(hf.CheckpointError, match=re.escape(canonical)) as caught:
        hf.load_checkpoint(state)
    assert caught.value.unexpected == (canonical,)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "no tensor"),
        ({"state_dict": {}}, "no tensor"),
        ({"epoch": 3}, "no tensor; its entries are epoch"),
        ({"weight": torch.ones(1)}, "No HRNet found.*weight"),
        ({"layer1.0.conv1.weight": torch.ones(64, 64, 1, 1)}, "No HRNet found"),
        ({"loss.weight": torch.ones(1)}, "No HRNet found"),
        (torch.ones(3), "path or a mapping; Tensor"),
        (17, "path or a mapping; int"),
        ([("conv1.weight", torch.ones(1))], "path or a mapping; list"),
    ],
)
def test_no_checkpoint(source: Any, message: str) -> None:
    with pytest.raises(hf.CheckpointError, match=message):
        hf.load_checkpoint(source)


def test_a_module_is_not_its_state() -> None:
    with pytest.raises(hf.CheckpointError, match=r"state_dict\(\)"):
        hf.load_checkpoint(tiny())  # type: ignore[arg-type]
    with pytest.raises(hf.CheckpointError, match="no tensor"):
        hf.load_checkpoint({"state_dict": tiny(), "epoch": 1})


OVERRIDES: dict[str, Any] = {"align_corners": True, "upsample_to": "scale_then_target", "bn_momentum": 0.5}


@pytest.mark.slow
def test_overrides() -> None:
    loaded = hf.load_checkpoint(state_of("seg"), **OVERRIDES)
    assert loaded.config.align_corners
    assert loaded.config.upsample_to == "scale_then_target"
    assert loaded.bn1.momentum == 0.5
    frozen = hf.load_checkpoint(state_of("cls"), frozen_stages=1, norm="frozen")
    assert not frozen.conv1.weight.requires_grad
    features = hf.load_checkpoint(state_of("timm_features"), out_indices=(0, 2))
    assert [tuple(m.shape) for m in features(image())] == [(1, 8, 32, 32), (1, 256, 8, 8)]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"colour": "red"}, hf.ConfigError, "unknown option.*colour"),
        ({"upsample": "bicubic"}, hf.ConfigError, "bicubic"),
        ({"out_indices": (4,)}, hf.ConfigError, "out_indices"),
        ({"num_outputs": 5}, hf.CheckpointError, "mis-shaped"),
        ({"stem_channels": 16}, hf.CheckpointError, "conv1.weight"),
        ({"impl": "tpu"}, hf.ImplementationError, "tpu"),
    ],
)
def test_overrides_refused(overrides: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hf.load_checkpoint(state_of("seg"), **overrides)


def test_the_source_is_neither_changed_nor_shared() -> None:
    state = state_of("pose")
    before = {k: v.clone() for k, v in state.items()}
    loaded = hf.load_checkpoint(state)
    with torch.no_grad():
        for tensor in loaded.state_dict().values():
            tensor.zero_()
    assert_equal_states(state, before)


def test_every_tensor_of_the_network_is_filled() -> None:
    assert torch.empty(8).isnan().all(), "memory starts as NaN in these tests"
    tensors: dict[str, Tensor] = dict(hf.load_checkpoint(state_of("seg_ocr")).state_dict())
    assert all(torch.isfinite(t).all() for t in tensors.values())
