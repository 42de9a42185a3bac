"""Which convention a network decodes by: the family's, the head's, or what was asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tiny_networks import tiny

import hrnet_fast as hf
from hrnet_fast.demo.random_weights import random_weights
from hrnet_fast.errors import InputError
from hrnet_fast.keypoints import METHODS
from hrnet_fast.skip_init import meta_device

HEATMAPS = {
    "pose": ("v1", "msra"),
    "mmpose": ("v1", "msra"),
    "mmpose_0x": ("v1", "msra"),
    "mmpose_face": ("face", "msra"),
    "mmpose_0x_face": ("face", "msra"),
    "face": ("face", "face"),
}


def test_families_of_heatmaps_have_one() -> None:
    named = {name: family.keypoints for name, family in hf.FAMILIES.items() if family.keypoints}
    segmentation = ("seg", "seg_ocr", "mmseg", "mmseg_ocr", "openseg", "openseg_ocr")
    assert named == {name: method for name, (_, method) in HEATMAPS.items()} | dict.fromkeys(segmentation, "none")


@pytest.mark.parametrize("family", HEATMAPS)
def test_a_checkpoint_brings_its_familys(family: str) -> None:
    head, method = HEATMAPS[family]
    state = random_weights(tiny(head).config, family)
    assert hf.load_checkpoint(state).keypoints == method
    model = hf.load_checkpoint(state, decode="udp")
    assert model.keypoints == copy.deepcopy(model).keypoints == "udp"
    with pytest.raises(InputError, match="load_checkpoint: 'simcc' is not one of msra, dark, udp, face"):
        hf.load_checkpoint(state, decode="simcc")


@pytest.mark.parametrize(("head", "method"), [("v1", "msra"), ("v2", None), ("face", "face"), ("c", None)])
def test_a_network_without_a_family_has_its_heads(head: str, method: Any) -> None:
    assert tiny(head).keypoints == method


@pytest.mark.slow
def test_named_networks_have_their_tasks() -> None:
    with meta_device():
        found = [hf.create_model(f"hrnetv2_w18_{task}").keypoints for task in ("pose", "seg", "face")]
    assert found == ["msra", "none", "face"]


@pytest.mark.slow
def test_what_has_no_heatmaps_is_not_decoded() -> None:
    state = random_weights(tiny("c").config, "cls")
    assert hf.load_checkpoint(state).keypoints is None
    for method in METHODS:
        with pytest.raises(InputError, match="no heatmaps"):
            hf.load_checkpoint(state, decode=method)
