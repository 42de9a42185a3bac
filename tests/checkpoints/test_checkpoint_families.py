"""Every family of checkpoints: recognised, loaded, evaluated, and converted back bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from family_states import assert_equal_states, count_batches, network, run, state_of
from tiny_networks import image, relative_l2, tiny

import hrnet_fast as hf
from hrnet_fast.checkpoints.family import DetectorFamily, NetworkFamily
from hrnet_fast.checkpoints.wrappers import absolute_scales

# Detectors' families are in tests/detection.
NETWORKS = {name: family for name, family in hf.FAMILIES.items() if not family.detector}
ALL = [(name, head) for name, family in NETWORKS.items() for head in family.heads]


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), ALL)
def test_loads_and_computes_what_its_network_does(family: str, head: str) -> None:
    model = network(family, head)
    state = state_of(family, head)
    loaded = hf.load_checkpoint(state, align_corners=model.config.align_corners)
    assert loaded.family == ("cls" if family == "timm" else family)
    assert not loaded.training
    assert loaded.config.head.kind == head
    own = loaded.state_dict()
    for key, value in count_batches(model.state_dict()).items():
        assert torch.equal(own[key], value), key
    x = image(64, 96)
    outputs, expected = run(loaded, x), run(model, x)
    if family == "mmseg_ocr":
        expected = expected[-1:]  # mmsegmentation's models return the main logits
    for a, e in zip(outputs, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(("family", "head"), [pair for pair in ALL if pair[0] not in ("pose_imagenet", "csail")])
def test_written_back_bit_for_bit(family: str, head: str) -> None:
    state = state_of(family, head)
    before = copy.deepcopy(state)
    assert_equal_states(hf.convert_checkpoint(state, to=family), state)
    assert_equal_states(state, before)


@pytest.mark.slow
@pytest.mark.parametrize("family", NETWORKS)
def test_named_explicitly(family: str) -> None:
    assert hf.load_checkpoint(state_of(family), family=family).family == family


def test_type_checkers_know_the_class_of_every_family() -> None:
    assert set(get_args(NetworkFamily)) == set(NETWORKS)
    assert set(get_args(DetectorFamily)) == set(hf.FAMILIES) - set(NETWORKS)


@pytest.mark.slow
def test_timm_without_a_classifier_is_timms() -> None:
    assert hf.load_checkpoint(state_of("timm", num_outputs=0)).family == "timm"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions_are_returned_as_stored(dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state_of("seg").items()}
    assert_equal_states(hf.convert_checkpoint(state, to="seg"), state)
    loaded = hf.load_checkpoint(state)
    assert loaded.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.conv1.weight, state["conv1.weight"].float())


@pytest.mark.slow
@pytest.mark.parametrize("source", ["seg", "mmpose", "cls", "mmdet", "timm_features", "pose_imagenet"])
@pytest.mark.parametrize("target", ["backbone", "mm_backbone"])
def test_the_trunk_of_any_family(source: str, target: str) -> None:
    state = state_of(source)
    trunk = hf.convert_checkpoint(state, to=target)
    loaded = hf.load_checkpoint(trunk, impl="reference")
    assert loaded.family == target
    assert loaded.config.head.kind == "features"
    x = image()
    with torch.no_grad():
        net = hf.load_checkpoint(state, upsample=loaded.config.upsample, impl="reference")
        expected = net.forward_features(x)
    for a, e in zip(run(loaded, x), expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(
    ("a", "b", "head"),
    [
        ("pose", "mmpose", "v1"),
        ("pose", "mmpose_0x", "v1"),
        ("face", "mmpose_face", "face"),
        ("mmpose_0x_face", "mmpose_face", "face"),
        ("det", "mmdet", "v2p"),
        ("det", "hrnet_fast", "v2p"),
        ("mmdet_1x", "mmdet", "v2p"),
        ("cls", "timm", "c"),
        ("backbone", "mm_backbone", "features"),
    ],
)
def test_between_families_of_the_same_layers(a: str, b: str, head: str) -> None:
    model = network(a, head)
    first, second = (hf.FAMILIES[name].from_canonical(model.state_dict()) for name in (a, b))
    assert_equal_states(hf.convert_checkpoint(first, to=b), second)
    assert_equal_states(hf.convert_checkpoint(second, to=a), first)


@pytest.mark.parametrize(("authors", "openmmlab", "folds"), [("seg", "mmseg", 1), ("seg_ocr", "mmseg_ocr", 2)])
def test_biases_fold_into_the_means(authors: str, openmmlab: str, folds: int) -> None:
    state = state_of(authors)
    folded = hf.convert_checkpoint(state, to=openmmlab)
    assert len(folded) == len(state) - folds
    x = image(64, 96, dtype=torch.float64)
    original = hf.load_checkpoint(state).double()
    alike = {"align_corners": original.config.align_corners, "ocr_outputs": "both"}
    there = hf.load_checkpoint(folded, **alike).double()
    back = hf.load_checkpoint(hf.convert_checkpoint(folded, to=authors), **alike).double()
    assert back.family == authors
    for a, b, e in zip(run(there, x), run(back, x), run(original, x), strict=True):
        assert relative_l2(a, e) <= 1e-6  # the mean is stored in float32
        assert torch.equal(b, a)


@pytest.mark.parametrize(("authors", "openmmlab"), [("seg", "mmseg"), ("seg_ocr", "mmseg_ocr")])
def test_missing_biases_become_zeros(authors: str, openmmlab: str) -> None:
    state = state_of(openmmlab)
    there = hf.convert_checkpoint(state, to=authors)
    added = set(there) - set(network(openmmlab, hf.FAMILIES[openmmlab].heads[0]).state_dict())
    assert len(added) == (1 if authors == "seg" else 2)
    assert all((there[key] == 0).all() for key in added)
    assert_equal_states(hf.convert_checkpoint(there, to=openmmlab), state)


def test_folding_without_running_statistics_is_refused() -> None:
    """Group normalisation has no mean that could take the bias."""
    state = tiny("v2", width=32, stem_channels=32, stage1_channels=32, norm_kind="gn").state_dict()
    assert hf.load_checkpoint(state).family == "seg"
    with pytest.raises(hf.CheckpointError, match="running_mean"):
        hf.convert_checkpoint(state, to="mmseg")


@pytest.mark.parametrize(
    ("source", "target"), [("pose", "seg"), ("seg", "face"), ("cls", "pose"), ("backbone", "pose"), ("mmdet", "mmseg")]
)
def test_a_head_that_the_target_does_not_have(source: str, target: str) -> None:
    with pytest.raises(hf.CheckpointError, match=f"cannot be written as '{target}'.*backbone"):
        hf.convert_checkpoint(state_of(source), to=target)


@pytest.mark.parametrize("family", ["pose_imagenet", "csail"])
def test_formats_that_are_only_read(family: str) -> None:
    for source in (family, "backbone"):
        with pytest.raises(hf.CheckpointError, match="backbone"):
            hf.convert_checkpoint(state_of(source), to=family)


@pytest.mark.parametrize("action", [hf.load_checkpoint, hf.convert_checkpoint])
def test_unknown_family(action: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"family": "torchvision"} if action is hf.load_checkpoint else {"to": "torchvision"}
    with pytest.raises(hf.CheckpointError, match=r"'torchvision' is not one of.*mmpose"):
        action(state_of("pose"), **options)


@pytest.mark.parametrize(("source", "named"), [("seg", "pose"), ("pose", "seg"), ("cls", "timm_features")])
def test_a_family_that_the_keys_contradict(source: str, named: str) -> None:
    with pytest.raises(hf.CheckpointError, match=r"heads?, but|does not fit"):
        hf.load_checkpoint(state_of(source), family=named)


@pytest.mark.parametrize("family", ["seg", "seg_ocr"])
def test_torch04_scales(family: str) -> None:
    state = state_of(family)
    signs = {k: -v if k.endswith("bn1.weight") else v for k, v in state.items()}
    loaded = hf.load_checkpoint(signs, torch04=True).state_dict()
    scales = {k.replace("running_mean", "weight") for k in state if k.endswith("running_mean")}
    for key, value in signs.items():
        if key in scales:
            torch.testing.assert_close(loaded[key], value.abs() + 1e-5, rtol=1e-7, atol=0)
            assert (loaded[key] > 0).all()
        else:
            assert torch.equal(loaded[key], value), key
    assert torch.equal(hf.load_checkpoint(signs).state_dict()["bn1.weight"], signs["bn1.weight"])
    assert_equal_states(absolute_scales(signs), hf.convert_checkpoint(signs, to=family, torch04=True))


def test_torch04_is_for_segmentation() -> None:
    with pytest.raises(hf.CheckpointError, match=r"torch04.*'pose'"):
        hf.load_checkpoint(state_of("pose"), torch04=True)
