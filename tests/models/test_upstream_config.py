"""The upstreams' configuration files, read as HRNetConfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hrnet_fast as hf
from hrnet_fast.skip_init import meta_device


def read(source: Any, **overrides: Any) -> hf.HRNetConfig:
    with meta_device():  # the layers are made, their weights are not
        return hf.HRNet.from_config(source, **overrides).config


def upper_stages(width: int = 18, *, stage1: bool = False) -> str:
    """The EXTRA section of the authors' files, as yaml at an indentation of four."""
    text = ""
    stages = [(1, 1, 1)] * stage1 + [(2, 1, 2), (3, 4, 3), (4, 3, 4)]
    for k, modules, branches in stages:
        channels = [64] if k == 1 else [width * 2**i for i in range(branches)]
        text += f"""
    STAGE{k}:
      NUM_MODULES: {modules}
      {"NUM_RANCHES" if k == 1 else "NUM_BRANCHES"}: {branches}
      BLOCK: {"BOTTLENECK" if k == 1 else "BASIC"}
      NUM_BLOCKS: {[4] * branches}
      NUM_CHANNELS: {channels}
      FUSE_METHOD: SUM"""
    return text


AUTHORS: dict[str, tuple[str, hf.HRNetConfig]] = {
    "pose": (
        "MODEL:\n  NAME: pose_hrnet\n  NUM_JOINTS: 17\n  EXTRA:\n    PRETRAINED_LAYERS: ['*']\n"
        f"    FINAL_CONV_KERNEL: 1{upper_stages(32)}\n",
        hf.HRNetConfig.make(32, "v1", 17),
    ),
    "pose_kernel3": (
        f"MODEL:\n  NAME: pose_hrnet\n  NUM_JOINTS: 16\n  EXTRA:\n    FINAL_CONV_KERNEL: 3{upper_stages(48)}\n",
        hf.HRNetConfig.make(48, "v1", 16, kernel_size=3),
    ),
    "seg": (
        "DATASET:\n  NUM_CLASSES: 19\nMODEL:\n  NAME: seg_hrnet\n  EXTRA:\n    FINAL_CONV_KERNEL: 1"
        f"{upper_stages(48, stage1=True)}\n",
        hf.HRNetConfig.make(48, "v2", 19, bn_momentum=0.01),
    ),
    "seg_early": (
        "DATASET:\n  NUM_CLASSES: 20\nMODEL:\n  NAME: seg_hrnet\n  EXTRA:\n"
        f"    FINAL_CONV_KERNEL: 1{upper_stages(48)}\n",
        hf.HRNetConfig.make(48, "v2", 20, bn_momentum=0.01),
    ),
    "seg_ocr": (
        "DATASET:\n  NUM_CLASSES: 19\nMODEL:\n  NAME: seg_hrnet_ocr\n  NUM_OUTPUTS: 2\n  EXTRA:\n"
        f"    FINAL_CONV_KERNEL: 1{upper_stages(48, stage1=True)}\n",
        hf.HRNetConfig.make(48, "ocr", 19),
    ),
    "seg_ocr_small": (
        "DATASET:\n  NUM_CLASSES: 59\nMODEL:\n  NAME: seg_hrnet_ocr\n  ALIGN_CORNERS: false\n"
        "  OCR: {MID_CHANNELS: 256, KEY_CHANNELS: 128, DROPOUT: 0.1}\n  EXTRA:\n"
        f"    FINAL_CONV_KERNEL: 1{upper_stages(18, stage1=True)}\n",
        hf.HRNetConfig.make(
            18, "ocr", 59, align_corners=False, channels=256, key_channels=128, dropout=0.1
        ),
    ),
    "cls": (
        f"MODEL:\n  NAME: cls_hrnet\n  NUM_CLASSES: 1000\n  EXTRA:{upper_stages(44, stage1=True)}\n",
        hf.HRNetConfig.make(44, "c", 1000),
    ),
    "face": (
        f"MODEL:\n  NAME: hrnet\n  NUM_JOINTS: 98\n  EXTRA:\n    FINAL_CONV_KERNEL: 1{upper_stages(18)}\n",
        hf.HRNetConfig.make(18, "face", 98),
    ),
}  # fmt: skip


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("name", AUTHORS)
def test_authors_yaml(name: str, tmp_path: Path) -> None:
    text, expected = AUTHORS[name]
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    for source in (path, str(path)):
        assert read(source) == expected


def lower_stages(width: int = 18) -> dict[str, Any]:
    def stage(modules: int, branches: int) -> dict[str, Any]:
        return {
            "num_modules": modules,
            "num_branches": branches,
            "block": "BASIC",
            "num_blocks": (4,) * branches,
            "num_channels": tuple(width * 2**i for i in range(branches)),
        }

    first = {"num_modules": 1, "num_branches": 1, "block": "BOTTLENECK", "num_blocks": (4,), "num_channels": (64,)}
    return {"stage1": first, "stage2": stage(1, 2), "stage3": stage(4, 3), "stage4": stage(3, 4)}


def backbone(width: int = 18, **options: Any) -> dict[str, Any]:
    return {"type": "HRNet", "extra": lower_stages(width)} | options


FCN = {
    "type": "FCNHead", "in_channels": [18, 36, 72, 144], "in_index": (0, 1, 2, 3), "channels": 270,
    "input_transform": "resize_concat", "kernel_size": 1, "num_convs": 1, "concat_input": False,
    "num_classes": 19, "align_corners": False, "dropout_ratio": -1, "norm_cfg": {"type": "BN", "requires_grad": True},
}  # fmt: skip
OCR = FCN | {"type": "OCRHead", "channels": 512, "ocr_channels": 256}
SYNC = {"type": "SyncBN", "requires_grad": True}
MMSEG: dict[str, Any] = {"upsample": "bilinear", "upsample_to": "scale_then_target", "init": "kaiming"}
OPENMMLAB: dict[str, tuple[dict[str, Any], hf.HRNetConfig]] = {
    "mmpose_0x": (
        {"type": "TopDown", "backbone": backbone(32), "keypoint_head": {
            "type": "TopdownHeatmapSimpleHead", "in_channels": 32, "out_channels": 17, "num_deconv_layers": 0,
            "extra": {"final_conv_kernel": 1}}},
        hf.HRNetConfig.make(32, "v1", 17, init="kaiming"),
    ),
    "mmpose_1x": (
        {"type": "TopdownPoseEstimator", "backbone": backbone(32), "head": {
            "type": "HeatmapHead", "in_channels": 32, "out_channels": 133, "deconv_out_channels": None}},
        hf.HRNetConfig.make(32, "v1", 133, init="kaiming"),
    ),
    "mmseg_fcn": (
        {"type": "EncoderDecoder", "backbone": backbone(18, norm_cfg=SYNC, norm_eval=False),
         "decode_head": FCN | {"norm_cfg": SYNC}},
        hf.HRNetConfig.make(18, "v2", 19, conv_bias=False, norm_kind="syncbn", **MMSEG),
    ),
    "mmseg_ocr": (
        {"type": "CascadeEncoderDecoder", "backbone": backbone(48), "decode_head": [FCN, OCR]},
        hf.HRNetConfig.make(48, "ocr", 19, conv_bias=False, ocr_outputs="main", dropout=0.0,
                            align_corners=False, **MMSEG),
    ),
    "mmdet": (
        {"type": "FasterRCNN", "backbone": backbone(40, frozen_stages=1, norm_eval=True, with_cp=True,
                                                    zero_init_residual=True),
         "neck": {"type": "HRFPN", "in_channels": [40, 80, 160, 320], "out_channels": 256}},
        hf.HRNetConfig.make(40, "v2p", frozen_stages=1, norm_eval=True, gradient_checkpointing=True,
                            zero_init_residual=True),
    ),
    "mmdet_levels": (
        {"backbone": backbone(32, norm_cfg={"type": "GN", "num_groups": 16}),
         "neck": {"type": "HRFPN", "in_channels": [32, 64, 128, 256], "out_channels": 128, "num_outs": 6}},
        hf.HRNetConfig.make(32, "v2p", channels=128, num_levels=6, norm_kind="gn", norm_groups=16),
    ),
    "backbone": (backbone(18), hf.HRNetConfig.make(18, "features", norm_eval=True)),
    "mmpose_backbone": (backbone(18, in_channels=3), hf.HRNetConfig.make(18, "features", multiscale_output=False)),
    "extra": (lower_stages(18), hf.HRNetConfig.make(18, "features")),
}  # fmt: skip


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("name", OPENMMLAB)
def test_openmmlab_mapping(name: str) -> None:
    mapping, expected = OPENMMLAB[name]
    assert read(mapping) == expected
    assert read({"model": mapping}) == expected


@pytest.mark.slow
def test_mmpose_final_kernel_is_read() -> None:
    head = {"out_channels": 17, "num_deconv_layers": 0, "extra": {"final_conv_kernel": 3}}
    config = read({"backbone": backbone(), "keypoint_head": head})
    assert config.head.kernel_size == 3
    head = {"out_channels": 17, "deconv_out_channels": None, "final_layer": {"kernel_size": 3, "padding": 1}}
    assert read({"backbone": backbone(), "head": head}).head.kernel_size == 3


@pytest.mark.parametrize(
    "head",
    [
        {"type": "HeatmapHead", "in_channels": 18, "out_channels": 17, "deconv_out_channels": (256, 256)},
        {"type": "TopdownHeatmapSimpleHead", "in_channels": 18, "out_channels": 17, "num_deconv_layers": 2},
    ],
)
def test_deconvolution_heads_are_refused(head: dict[str, Any]) -> None:
    """No head here has them: building the network without would give maps of another size."""
    name = "head" if "deconv_out_channels" in head else "keypoint_head"
    with pytest.raises(hf.ConfigError, match="deconv"):
        read({"backbone": backbone(), name: head})


@pytest.mark.slow
def test_mmpose_landmarks_take_all_resolutions() -> None:
    extra = lower_stages(18)
    extra["stage4"] |= {"multiscale_output": True}
    extra["upsample"] = {"mode": "bilinear", "align_corners": False}
    head = {"type": "HeatmapHead", "in_channels": 270, "out_channels": 98, "deconv_out_channels": None,
            "conv_out_channels": (270,), "conv_kernel_sizes": (1,)}  # fmt: skip
    config = read({"backbone": {"type": "HRNet", "extra": extra}, "head": head})
    assert (config.head.kind, config.head.num_outputs) == ("face", 98)
    assert (config.upsample, config.multiscale_output) == ("bilinear", True)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_bare_backbone_says_how_many_maps_it_returns(wrapped: bool) -> None:
    def maps(stage4: dict[str, Any], **options: Any) -> bool:
        extra = lower_stages(18)
        extra["stage4"] |= stage4
        mapping = {"type": "HRNet", "extra": extra} | options
        return read({"backbone": mapping} if wrapped else mapping).multiscale_output

    assert maps({})
    assert not maps({"multiscale_output": False})
    assert not maps({}, multiscale_output=False)
    assert maps({"multiscale_output": True}, multiscale_output=False)
    extra = lower_stages(18)
    extra["stage4"] |= {"multiscale_output": False}
    assert not read(extra).multiscale_output
    del extra["stage4"]
    assert read(extra).multiscale_output


def test_other_necks_are_refused() -> None:
    with pytest.raises(hf.ConfigError, match="FPN"):
        read({"backbone": backbone(), "neck": {"type": "FPN", "out_channels": 256}})


@pytest.mark.parametrize("change", [{"num_convs": 2}, {"concat_input": True}])
def test_other_decode_heads_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(hf.ConfigError, match=next(iter(change))):
        read({"backbone": backbone(), "decode_head": FCN | change})


def test_overrides_apply_last() -> None:
    config = read(backbone(), align_corners=True, out_indices=(0, 3))
    assert config.align_corners
    assert config.head.out_indices == (0, 3)


def broken(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    mapping: dict[str, Any] = backbone()
    place = mapping
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return mapping


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "no HRNet"),
        ({"depth": 50}, "depth"),
        (17, "int"),
        ({"MODEL": {"NAME": "pose_hrnet"}}, "EXTRA"),
        ({"MODEL": {"NAME": "resnet", "EXTRA": {}}}, "resnet"),
        ({"MODEL": {"NAME": "pose_hrnet", "EXTRA": {}}}, "NUM_JOINTS"),
        (broken(("extra", "stage3", "block"), "DENSE"), "DENSE"),
        (broken(("extra", "stage3", "fuse_method"), "PRODUCT"), "PRODUCT"),
        (broken(("extra", "stage3", "num_channels"), (18, 36)), "num_blocks"),
        (broken(("extra", "stage2"), "two"), "mistypes"),
        (broken(("type",), "ResNet"), "ResNet"),
        (broken(("norm_cfg",), {"type": "LN"}), "LN"),
    ],
)
def test_refusals(source: Any, message: str) -> None:
    with pytest.raises(hf.ConfigError, match=message):
        read(source)


@pytest.mark.parametrize("content", [None, b"MODEL: [", b"- a\n- b\n", b"\xff\xfe\x00"])
def test_unreadable_yaml(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(hf.ConfigError, match=r"config\.yaml"):
        read(path)
