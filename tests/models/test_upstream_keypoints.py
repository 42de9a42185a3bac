"""Heatmap decoding of a network built from an upstream's configuration."""

from __future__ import annotations

from typing import Any

import pytest
from test_upstream_config import backbone
from test_upstream_settings import (
    DEKR,
    DET,
    HEATMAP_0X,
    HIGHER,
    LANDMARKS,
    MMPOSE,
    MMPOSE_0X,
    MMSEG,
    MSRA,
    POSE,
    UDP,
    Mapping,
    authors,
    changed,
    seg,
)

import hrnet_fast as hf
from hrnet_fast.models.upstream import read_configuration
from hrnet_fast.skip_init import meta_device


def keypoints(source: Any, **options: Any) -> tuple[str | None, tuple[str, ...]]:
    found = read_configuration(source, **options)
    return found.keypoints, found.notes


DECODERS = [(None, "msra"), (MSRA, "msra"), (MSRA | {"unbiased": False}, "msra"), (MSRA | {"unbiased": True}, "dark"),
            (UDP, "udp"), (UDP | {"heatmap_type": "gaussian", "type": "mmpose.UDPHeatmap"}, "udp")]  # fmt: skip


@pytest.mark.parametrize(("decoder", "method"), DECODERS)
def test_heatmaps_of_mmpose_decode_as_its_codec_does(decoder: Mapping | None, method: str) -> None:
    """mmpose/codecs/msra_heatmap.py and udp_heatmap.py; its landmarks have none of the authors' half pixel."""
    for network in (MMPOSE, LANDMARKS):
        given = changed(network, "head.decoder", decoder)
        assert keypoints(given) == (method, ())
        assert keypoints(given, part="backbone") == (None, ())
    assert (keypoints(MMPOSE), keypoints(LANDMARKS)) == (("msra", ()), ("msra", ()))


TEST_CFG = [({"post_process": "default", "shift_heatmap": True, "modulate_kernel": 17}, "msra"),
            ({"post_process": "unbiased", "modulate_kernel": 11}, "dark"), ({"use_udp": True}, "udp"),
            ({"post_process": "default", "target_type": "GaussianHeatmap", "use_udp": True}, "udp"),
            ({"post_process": True, "unbiased_decoding": True, "use_udp": False}, "dark"), ({}, "msra"),
            (None, "msra")]  # fmt: skip


@pytest.mark.parametrize(("settings", "method"), TEST_CFG)
def test_heatmaps_of_mmpose_0x_decode_as_its_test_cfg_says(settings: Mapping | None, method: str) -> None:
    """keypoints_from_heatmaps in mmpose/core/evaluation/top_down_eval.py of v0.29."""
    extra = {"final_conv_kernel": 1, "num_conv_layers": 1, "num_conv_kernels": (1,)}
    all_maps = HEATMAP_0X | {"in_channels": [18, 36, 72, 144], "in_index": (0, 1, 2, 3), "extra": extra,
                             "input_transform": "resize_concat"}  # fmt: skip
    for network in (MMPOSE_0X, {"backbone": LANDMARKS["backbone"], "keypoint_head": all_maps}):
        assert keypoints(network | {"test_cfg": settings}) == (method, ())


def test_another_blur_than_ours_is_noted() -> None:
    for decoder in (UDP, MSRA | {"unbiased": True}):
        (note,) = keypoints(changed(MMPOSE, "head.decoder", decoder | {"blur_kernel_size": 17}))[1]
        assert note.startswith("head.decoder.blur_kernel_size is 17;")
    (note,) = keypoints(changed(MMPOSE_0X, "test_cfg", {"post_process": "unbiased", "modulate_kernel": 17}))[1]
    assert note.startswith("test_cfg.modulate_kernel is 17;")


def test_another_codec_than_the_heads_is_noted() -> None:
    """mmpose's UDP configurations of DeepFashion: the head keeps the decoder of the file that they are based on."""
    whole = {"default_scope": "mmpose", "codec": UDP, "model": changed(MMPOSE, "head.decoder", MSRA)}
    method, (note,) = keypoints(whole)
    assert method == "msra"
    assert note.startswith("codec is UDPHeatmap, model.head.decoder MSRAHeatmap:")
    assert keypoints(changed(whole, "model.head.decoder", UDP)) == ("udp", ())
    assert keypoints(changed(whole, "codec", MSRA)) == ("msra", ())
    assert keypoints(whole, part="backbone") == (None, ())


def from_config(source: Any, **overrides: Any) -> str | None:
    with meta_device():
        return hf.HRNet.from_config(source, **overrides).keypoints


@pytest.mark.slow
def test_networks_know_how_their_heatmaps_decode() -> None:
    assert from_config(POSE) == "msra"
    assert from_config(authors("hrnet", NUM_JOINTS=98)) == "face"
    assert from_config(changed(MMPOSE, "head.decoder", UDP)) == "udp"
    assert from_config(changed(LANDMARKS, "head.decoder", MSRA | {"unbiased": True})) == "dark"
    assert from_config(LANDMARKS) == "msra"
    assert from_config(POSE, part="backbone") is None
    assert from_config(POSE, head=hf.HeadConfig("features")) is None
    assert from_config(backbone(in_channels=3), head=hf.HeadConfig("v1", 17)) == "msra"


def test_networks_without_heatmaps() -> None:
    grouping = {"type": "AssociativeEmbeddingHead", "in_channels": 18, "num_keypoints": 17,
                "deconv_out_channels": None, "decoder": {"type": "AssociativeEmbedding"}}  # fmt: skip
    without: list[Mapping] = [HIGHER, DEKR, seg(), DET, MMSEG, backbone(), {"backbone": backbone(), "head": grouping}]
    for network in without:
        assert keypoints(network)[0] is None
    assert from_config(seg()) == "none"
