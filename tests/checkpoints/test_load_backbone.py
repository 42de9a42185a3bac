"""``load_backbone``: stem, stages and transitions filled from any family's checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_states import State, assert_equal_states, state_of
from tiny_networks import tiny

import hrnet_fast as hf


def test_old_imagenet_files_fill_pose_nets() -> None:
    state = state_of("pose_imagenet")
    assert any(key.startswith("stage4.0.fuse_layers.3.") for key in state), "all rows of the last fusion"
    pose = tiny("v1", 17)
    head = {k: v.clone() for k, v in pose.state_dict().items() if k.startswith("final_layer.")}
    assert hf.load_backbone(pose, state) is pose
    for key, value in pose.state_dict().items():
        assert torch.equal(value, head.get(key, state.get(key))), key


@pytest.mark.parametrize("source", ["cls", "mm_backbone", "seg_ocr", "mmdet"])
def test_any_family_fills_a_trunk(source: str) -> None:
    trunk = hf.convert_checkpoint(state_of(source), to="backbone")
    model = tiny("v2", 5)
    with torch.no_grad():
        model.conv1.weight.zero_()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hf.load_backbone(model, state_of(source))
    for key, value in model.state_dict().items():
        assert torch.equal(value, trunk.get(key, before[key])), key


def test_counters_stay_where_the_source_has_none() -> None:
    model = tiny("v2")
    hf.load_backbone(model, {k: v for k, v in state_of("cls").items() if not k.endswith("num_batches_tracked")})
    assert model.bn1.num_batches_tracked == 0


def untouched(model: hf.HRNet) -> Callable[[], None]:
    before = copy.deepcopy(model.state_dict())
    return lambda: assert_equal_states(model.state_dict(), before)


@pytest.mark.parametrize(
    ("source", "model", "attribute", "key"),
    [
        (lambda: state_of("cls", width=8), lambda: tiny("v1"), "mismatched", "transition1.0.0.weight"),
        (lambda: state_of("pose"), lambda: tiny("v2"), "missing", "stage4.0.fuse_layers.1.1"),
        (lambda: state_of("cls", num_blocks=2), lambda: tiny("v1"), "unexpected", "stage2.0.branches.0.1.conv1.weight"),
    ],
)
def test_trunks_that_differ(
    source: Callable[[], State], model: Callable[[], hf.HRNet], attribute: str, key: str
) -> None:
    target = model()
    check = untouched(target)
    with pytest.raises(hf.CheckpointError, match="trunk") as caught:
        hf.load_backbone(target, source())
    named = [entry if isinstance(entry, str) else entry[0] for entry in getattr(caught.value, attribute)]
    assert any(name.startswith(key.rsplit(".", 1)[0]) for name in named)
    check()


def test_a_broken_source_leaves_the_model_alone(tmp_path: Path) -> None:
    model = tiny("v1")
    check = untouched(model)
    incomplete = state_of("cls")
    del incomplete["stage4.0.branches.3.0.bn2.running_var"]
    for source in (incomplete, {}, tmp_path / "none.pth"):
        with pytest.raises(hf.CheckpointError):
            hf.load_backbone(model, source)
        check()
