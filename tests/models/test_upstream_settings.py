"""Every setting of the upstreams' configurations is read, known to have no effect on the network, or refused.

What each code base does with a setting, or without it, was read off and run: the authors' repositories, mmpose 0.x and
1.3, mmsegmentation 1.2, mmdetection 3.3.
"""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from test_upstream_config import FCN, OCR, backbone, lower_stages, upper_stages

import hrnet_fast as hf
from hrnet_fast.models.upstream import read_configuration
from hrnet_fast.skip_init import meta_device

Mapping = dict[str, Any]


def read(source: Any, *, upstream: str | None = None, part: str = "all", **overrides: Any) -> hf.HRNetConfig:
    """What HRNet.from_config builds, without its layers."""
    return read_configuration(source, upstream=upstream, part=part).config.override(**overrides)


def authors(name: str, *, first: bool = False, extra: Mapping | None = None, **model: Any) -> Mapping:
    """An authors' configuration of width 18, as yaml gives it."""
    import yaml

    stages = yaml.safe_load(f"EXTRA:{upper_stages(18, stage1=first)}")["EXTRA"]
    return {"MODEL": {"NAME": name, "EXTRA": {"FINAL_CONV_KERNEL": 1, **stages, **(extra or {})}, **model}}


def seg(**model: Any) -> Mapping:
    return authors("seg_hrnet", first=True, **model) | {"DATASET": {"NUM_CLASSES": 150}}


def changed(mapping: Mapping, path: str, value: Any) -> Mapping:
    """A copy with one value set, at a path of dots."""
    key, _, rest = path.partition(".")
    return mapping | {key: changed(mapping.get(key, {}), rest, value) if rest else value}


POSE = authors("pose_hrnet", NUM_JOINTS=17)
HIGHER = authors(
    "pose_higher_hrnet", NUM_JOINTS=17, TAG_PER_JOINT=True,
    extra={"DECONV": {"NUM_DECONVS": 1, "NUM_CHANNELS": [32], "NUM_BASIC_BLOCKS": 4, "KERNEL_SIZE": [4],
                      "CAT_OUTPUT": [True]}},
) | {"LOSS": {"WITH_AE_LOSS": [True, False], "NUM_STAGES": 2}}  # fmt: skip
DEKR: Mapping = {"MODEL": {"NAME": "hrnet_dekr", "NUM_JOINTS": 17, "SPEC": {
    "FINAL_CONV_KERNEL": 1, "PRETRAINED_LAYERS": ["*"], "HEAD_HEATMAP": {"BLOCK": "BASIC"}, "HEAD_OFFSET": {},
    "STAGES": {"NUM_STAGES": 3, "NUM_MODULES": [1, 4, 3], "NUM_BRANCHES": [2, 3, 4], "BLOCK": ["BASIC"] * 3,
               "NUM_BLOCKS": [[4] * 2, [4] * 3, [4] * 4],
               "NUM_CHANNELS": [[32, 64], [32, 64, 128], [32, 64, 128, 256]],
               "FUSE_METHOD": ["SUM"] * 3}}}}  # fmt: skip
NECK: Mapping = {"type": "HRFPN", "in_channels": [18, 36, 72, 144], "out_channels": 256}
HEATMAP: Mapping = {"type": "HeatmapHead", "in_channels": 18, "out_channels": 17, "deconv_out_channels": None}
MSRA: Mapping = {"type": "MSRAHeatmap", "input_size": (192, 256), "heatmap_size": (48, 64), "sigma": 2}
UDP: Mapping = MSRA | {"type": "UDPHeatmap"}
DET: Mapping = {"backbone": backbone(), "neck": NECK}
MMPOSE: Mapping = {"backbone": backbone(), "head": HEATMAP}
HEATMAP_0X: Mapping = {"type": "TopdownHeatmapSimpleHead", "in_channels": 18, "out_channels": 17,
                       "num_deconv_layers": 0}  # fmt: skip
MMPOSE_0X: Mapping = {"backbone": backbone(), "keypoint_head": HEATMAP_0X}
LANDMARKS: Mapping = {"backbone": backbone(extra=changed(lower_stages(18), "stage4.multiscale_output", True)), "head": {
    "type": "HeatmapHead", "in_channels": 270, "out_channels": 98, "deconv_out_channels": None,
    "conv_out_channels": (270,), "conv_kernel_sizes": (1,)}}  # fmt: skip
MMSEG: Mapping = {"backbone": backbone(), "decode_head": FCN}
MMSEG_OCR: Mapping = {"backbone": backbone(), "decode_head": [FCN, OCR]}
AE_0X: Mapping = {"type": "AEHigherResolutionHead", "in_channels": 18, "num_joints": 14, "tag_per_joint": True,
                  "extra": {"final_conv_kernel": 1}, "num_deconv_layers": 1, "num_deconv_filters": [18],
                  "num_deconv_kernels": [4], "num_basic_blocks": 2, "cat_output": [True],
                  "with_ae_loss": [True, False], "loss_keypoint": {}}  # fmt: skip


@pytest.mark.parametrize(
    "mark",
    [
        "MODEL.NUM_OUTPUTS",
        "MODEL.OCR",
        "LOSS.BALANCE_WEIGHTS",
        "TRAIN.NONBACKBONE_KEYWORDS",
        "TRAIN.FREEZE_LAYERS",
        "TEST.OUTPUT_INDEX",
    ],
)
def test_ocr_branch_aligns_corners_by_default(mark: str) -> None:
    """Its default.py has ALIGN_CORNERS = True, and knows keys that the other branches' refuses."""
    config = read(changed(seg(), mark, 1))
    assert (config.align_corners, config.norm.momentum) == (True, 0.1)
    assert not read(changed(seg(ALIGN_CORNERS=False), mark, 1)).align_corners
    assert not read(changed(seg(), mark, 1), align_corners=False).align_corners


@pytest.mark.slow
def test_older_segmentation_branches_never_align(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hrnet_fast.models"), meta_device():
        model = hf.HRNet.from_config(seg())
    assert (model.config.align_corners, model.config.norm.momentum) == (False, 0.01)
    assert "align_corners=True" in model.notes[0]
    assert model.notes[0] in caplog.text
    assert read(seg(ALIGN_CORNERS=False)).norm.momentum == 0.1


def test_settings_that_the_authors_code_reads_past() -> None:
    first = {"STAGE1": {"NUM_CHANNELS": [32], "NUM_BLOCKS": [1]}}
    assert read(authors("pose_hrnet", NUM_JOINTS=17, extra=first)) == read(POSE)
    ocr = authors("seg_hrnet_ocr", first=True, extra={"FINAL_CONV_KERNEL": 3})
    assert read(ocr).head.kernel_size == 1
    assert read(seg(extra={"FINAL_CONV_KERNEL": 3})).head.kernel_size == 3
    assert read(authors("seg_hrnet", first=True)).head.num_outputs == 19
    everything = {"INIT_WEIGHTS": True, "PRETRAINED": "", "TARGET_TYPE": "gaussian", "IMAGE_SIZE": [192, 256],
                  "HEATMAP_SIZE": [48, 64], "SIGMA": 2, "TAG_PER_JOINT": True}  # fmt: skip
    assert read(authors("pose_hrnet", NUM_JOINTS=17, **everything)) == read(POSE)


def test_higher_hrnet() -> None:
    expected = hf.HRNetConfig.make(18, "higher", 17, deconvs=(hf.DeconvConfig(32),))
    assert read(HIGHER) == expected
    assert read(changed(HIGHER, "MODEL.SYNC_BN", True)) == expected.override(norm_kind="syncbn")
    assert read(changed(HIGHER, "MODEL.TAG_PER_JOINT", False)).head.tags == (1, 0)
    assert read(changed(HIGHER, "LOSS.WITH_AE_LOSS", [True, True])).head.tags == (17, 17)
    head = read(changed(HIGHER, "MODEL.EXTRA.DECONV.CAT_OUTPUT", [False])).head
    assert head.deconvs == (hf.DeconvConfig(32, concat=False),)
    with pytest.raises(hf.ConfigError, match="WITH_AE_LOSS"):
        read(changed(HIGHER, "LOSS.WITH_AE_LOSS", [True]))


def test_mmpose_0x_associative_embedding() -> None:
    head = read({"backbone": backbone(), "keypoint_head": AE_0X}).head
    assert (head.kind, head.num_outputs, head.tags) == ("higher", 14, (14, 0))
    assert head.deconvs == (hf.DeconvConfig(18, num_blocks=2),)
    simple = {"type": "AESimpleHead", "in_channels": 18, "num_joints": 17, "num_deconv_layers": 0,
              "tag_per_joint": True, "with_ae_loss": [True], "extra": {"final_conv_kernel": 1}}  # fmt: skip
    assert read({"backbone": backbone(), "keypoint_head": simple}).head == hf.HeadConfig("v1", 34)


def test_mmpose_associative_embedding() -> None:
    head = {"type": "AssociativeEmbeddingHead", "in_channels": 18, "num_keypoints": 17, "tag_dim": 1,
            "tag_per_keypoint": True, "deconv_out_channels": None, "keypoint_loss": {}, "tag_loss": {}}  # fmt: skip
    with meta_device():
        model = hf.HRNet.from_config({"backbone": backbone(), "head": head})
    assert model.config.head == hf.HeadConfig("v1", 34)
    assert "heatmaps first" in model.notes[0]
    assert (
        read({"backbone": backbone(), "head": head | {"tag_per_keypoint": False, "tag_dim": 2}}).head.num_outputs == 19
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CIDHead", "DEKRHead"])
def test_trunks_of_bottom_up_networks(name: str) -> None:
    extra = lower_stages(32)
    extra["stage4"]["multiscale_output"] = True
    mapping = {"backbone": {"type": "HRNet", "extra": extra}, "head": {"type": name, "in_channels": 480},
               "neck": {"type": "FeatureMapProcessor", "concat": True}}  # fmt: skip
    with meta_device():
        model = hf.HRNet.from_config(mapping)
        alone = hf.HRNet.from_config(mapping, part="backbone")
    assert model.config == hf.HRNetConfig.make(32, "features") == alone.config
    assert name in model.notes[0]
    assert alone.notes == ()


def test_trunk_of_dekr() -> None:
    with meta_device():
        model = hf.HRNet.from_config(DEKR)
    assert model.config == hf.HRNetConfig.make(32, "features", init="normal")
    assert "HEAD" in model.notes[0]


def test_part_backbone_reads_no_head() -> None:
    assert read(POSE, part="backbone") == hf.HRNetConfig.make(
        18, "features", multiscale_output=False, init="normal"
    )  # fmt: skip
    fpn = {"backbone": backbone(), "neck": {"type": "FPN"}, "rpn_head": {}}
    assert read(fpn, part="backbone") == hf.HRNetConfig.make(18, "features", norm_eval=True)


def test_mmdetection() -> None:
    """Its backbone keeps batch statistics unless told otherwise; all its FCOS configurations have a stride of 2."""
    fcos = {"type": "FCOS", "backbone": backbone(), "neck": NECK | {"stride": 2, "num_outs": 5}, "bbox_head": {}}
    with meta_device():
        model = hf.HRNet.from_config(fcos)
    assert model.config == hf.HRNetConfig.make(18, "v2p", pyramid_stride=2, norm_eval=True)
    assert "bbox_head" in model.notes[0]
    assert not read(changed(fcos, "backbone.norm_eval", False)).norm_eval
    assert read(changed(fcos, "neck.pooling_type", "MAX")).head.pyramid_pool == "max"
    norm = {"type": "GN", "num_groups": 16, "requires_grad": True}
    assert read(changed(fcos, "neck.norm_cfg", norm)).head.pyramid_norm == hf.NormConfig("gn", groups=16)


@pytest.mark.parametrize(("name", "norm"), [("HighResolutionNet", "bn"), ("SyncHighResolutionNet", "syncbn")])
def test_authors_detection(name: str, norm: str) -> None:
    extra = {key: stage | {"fuse_method": "SUM"} for key, stage in lower_stages(18).items()}
    model = {"type": "FasterRCNN", "pretrained": "w18.pth", "backbone": {"type": name, "extra": extra}, "neck": NECK,
             "rpn_head": {}, "bbox_roi_extractor": {}, "bbox_head": {}}  # fmt: skip
    expected = hf.HRNetConfig.make(18, "v2p", norm_kind=norm, norm_eval=True)
    assert read({"model": model, "train_cfg": {}, "total_epochs": 12}) == expected


WHOSE: dict[str, tuple[Mapping, str | None]] = {
    "scope": ({"type": "mmpose.HRNet", "extra": lower_stages()}, "mmpose"),
    "path": ({"type": "mmpose.models.backbones.hrnet.HRNet", "extra": lower_stages()}, "mmpose"),
    "default_scope": ({"default_scope": "mmpose", "model": {"backbone": backbone()}}, "mmpose"),
    "own_scope": ({"_scope_": "mmseg", "backbone": backbone(in_channels=3)}, "mmseg"),
    "weights": (backbone(init_cfg={"type": "Pretrained", "checkpoint": "https://x/mmpose/hrnet_w32.pth"}), "mmpose"),
    "in_channels": (backbone(in_channels=3), "mmpose"),
    "mmseg": (backbone(norm_cfg={"type": "SyncBN", "requires_grad": True}, norm_eval=False), "mmseg"),
    "plain": (backbone(), "mmdet"),
    "stages": (lower_stages(), None),
}
ASSUMED = ("in_channels", "mmseg", "plain", "stages")


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("name", WHOSE)
def test_whose_backbone(name: str) -> None:
    mapping, whose = WHOSE[name]
    with meta_device():
        model = hf.HRNet.from_config(mapping)
        named = hf.HRNet.from_config(mapping, upstream="mmpose")
    config = model.config
    assert config.multiscale_output == (whose != "mmpose")
    assert config.upsample == ("bilinear" if whose == "mmseg" else "nearest")
    assert config.norm_eval == (whose == "mmdet")
    assert bool(model.notes) == (name in ASSUMED)
    assert not named.config.multiscale_output
    assert named.notes == ()


def test_a_bare_backbone_of_mmpose_returns_one_map() -> None:
    model = hf.HRNet.from_config(backbone(in_channels=3), part="backbone").eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 18, 16, 16)]


UNKNOWN: dict[str, Mapping] = {
    "MODEL.NEW": POSE,
    "MODEL.EXTRA.NEW": POSE,
    "MODEL.EXTRA.STAGE3.NEW": POSE,
    "MODEL.ALIGN_CORNERS": POSE,
    "MODEL.EXTRA.DECONV.NEW": HIGHER,
    "MODEL.SPEC.NEW": DEKR,
    "MODEL.SPEC.STAGES.NEW": DEKR,
    "new": DET,
    "backbone.new": DET,
    "backbone.extra.new": DET,
    "backbone.extra.stage2.new": DET,
    "backbone.norm_cfg.new": DET,
    "neck.new": DET,
    "head.new": MMPOSE,
    "head.final_layer.new": MMPOSE,
    "decode_head.new": MMSEG,
}


@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_keys_are_refused_by_name(path: str) -> None:
    read(UNKNOWN[path])
    with pytest.raises(hf.ConfigError, match=path.replace(".", r"\.")):
        read(changed(UNKNOWN[path], path, 1))


REFUSED: list[tuple[Mapping, str, Any]] = [
    (POSE, "MODEL.NAME", "pose_resnet"),
    (POSE, "MODEL.NUM_JOINTS", "17"),
    (POSE, "MODEL.EXTRA.STAGE3.NUM_BRANCHES", 2),
    (authors("hrnet", NUM_JOINTS=98), "MODEL.EXTRA.FINAL_CONV_KERNEL", 3),
    (DET, "backbone.conv_cfg", {"type": "DCNv2"}),
    (DET, "backbone.plugins", [{"cfg": {"type": "ContextBlock"}}]),
    (DET, "backbone.dcn", {"type": "DCN"}),
    (DET, "backbone.norm_cfg", {"type": "BN", "requires_grad": False}),
    (DET, "backbone.extra.upsample", {"mode": "bilinear"}),
    (DET, "neck.conv_cfg", {"type": "ConvWS"}),
    (DET, "neck.pooling_type", "SUM"),
    (DET, "neck.in_channels", [32, 64, 128, 256]),
    (DET, "neck.share_conv", True),
    (MMPOSE, "head.conv_out_channels", (64, 64)),
    (MMPOSE, "head.in_channels", 32),
    (MMPOSE, "head.final_layer", None),
    (MMPOSE, "head.final_layer", {"kernel_size": 3}),
    (changed(MMPOSE, "head.final_layer", {"kernel_size": 3, "padding": 1}), "head.final_layer.padding", 0),
    (MMPOSE, "head.decoder.type", "MegviiHeatmap"),
    (changed(MMPOSE, "head.decoder", UDP), "head.decoder.heatmap_type", "combined"),
    (changed(MMPOSE, "head.decoder", MSRA), "head.decoder.new", 1),
    (changed(MMPOSE, "head.decoder", MSRA), "head.decoder.unbiased", "False"),
    (MMPOSE_0X, "keypoint_head.decoder", MSRA),
    (MMPOSE_0X, "test_cfg.target_type", "CombinedTarget"),
    (MMPOSE_0X, "test_cfg.post_process", "megvii"),
    (MMPOSE_0X, "test_cfg.post_process", None),
    (MMPOSE_0X, "test_cfg.use_udp", "True"),
    (MMPOSE, "head.type", "RegressionHead"),
    (MMPOSE, "neck", {"type": "FeatureMapProcessor", "concat": True}),
    (MMPOSE, "neck", {"type": "GlobalAveragePooling"}),
    (MMPOSE, "backbone.extra.stage4.multiscale_output", True),
    (MMSEG, "decode_head.type", "ASPPHead"),
    (MMSEG, "decode_head.channels", 512),
    (MMSEG, "decode_head.dropout_ratio", "0.1"),
    (MMSEG, "decode_head.in_index", (0, 1)),
    (MMSEG, "decode_head.input_transform", "multiple_select"),
    (MMSEG, "decode_head.act_cfg", {"type": "GELU"}),
    (MMSEG, "decode_head.conv_cfg", {"type": "ConvWS"}),
    (MMSEG, "decode_head.norm_cfg", {"type": "SyncBN"}),
    (MMSEG, "decode_head.norm_cfg", None),
    (MMSEG, "decode_head.align_corners", True),
    (MMSEG, "decode_head.kernel_size", 3),
    (MMSEG_OCR, "decode_head", [FCN | {"dropout_ratio": 0.1}, OCR]),
    (MMSEG_OCR, "decode_head", [{k: v for k, v in FCN.items() if k != "dropout_ratio"}, OCR]),
    (MMSEG_OCR, "decode_head", [FCN, OCR | {"norm_cfg": None}]),
    (MMSEG_OCR, "decode_head", [FCN, OCR | {"scale": 2}]),
    (MMSEG_OCR, "decode_head", [FCN, OCR | {"num_classes": 5}]),
    (MMSEG_OCR, "decode_head", [FCN, OCR, OCR]),
]


@pytest.mark.parametrize(("mapping", "path", "value"), REFUSED, ids=[f"{path}={value}" for _, path, value in REFUSED])
def test_settings_that_cannot_be_built_are_refused_by_name(mapping: Mapping, path: str, value: Any) -> None:
    read(mapping)
    with pytest.raises(hf.ConfigError, match=path.rpartition(".")[2].replace("decode_head", "decode.head")):
        read(changed(mapping, path, value))


def test_defaults_of_an_fcn_head_are_mmsegmentations() -> None:
    """Two 3x3 convolutions and a concatenation over the last map: another network, so absence is no consent."""
    for key in ("num_convs", "kernel_size", "concat_input", "in_index", "input_transform"):
        with pytest.raises(hf.ConfigError, match=f"{key} is .*upstream's default"):
            read({"backbone": backbone(), "decode_head": {k: v for k, v in FCN.items() if k != key}})


def test_mmsegmentation_heads() -> None:
    sync = {"type": "SyncBN", "requires_grad": True}
    whole = FCN | {"norm_cfg": sync}
    model = {"backbone": backbone(norm_cfg=sync, norm_eval=False), "pretrained": "x", "auxiliary_head": {}}
    with meta_device():
        net = hf.HRNet.from_config(model | {"decode_head": whole})
    assert net.notes == ("left out, as no part of HRNet: auxiliary_head",)
    binary = whole | {"num_classes": 2, "out_channels": 1, "threshold": 0.3}
    assert read(model | {"decode_head": binary}).head.num_outputs == 1
    ocr = {k: v for k, v in OCR.items() if k not in ("num_convs", "concat_input", "kernel_size")}
    head = read(model | {"decode_head": [whole, ocr | {"norm_cfg": sync, "dropout_ratio": 0.2}]}).head
    assert (head.kind, head.dropout) == ("ocr", 0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "built"), [({"dropout_ratio": 0.3}, 0.3), ({"dropout_ratio": 0}, 0), ({}, 0.1)])
def test_mmsegmentation_drops_a_tenth_of_the_channels_by_default(given: Mapping, built: float) -> None:
    """Of the input of the classifier, in the FCN head and in OCR's main one."""
    fcn, ocr = ({k: v for k, v in head.items() if k != "dropout_ratio"} | given for head in (FCN, OCR))
    assert read({"backbone": backbone(), "decode_head": fcn}).head.dropout == built
    assert read({"backbone": backbone(), "decode_head": [FCN, ocr]}).head.dropout == built
    with meta_device():
        layers = hf.HRNet.from_config({"backbone": backbone(), "decode_head": fcn}).last_layer
    assert [layer.p for layer in layers.modules() if isinstance(layer, torch.nn.Dropout2d)] == [built] * bool(built)


OCR_YAML = authors("seg_hrnet_ocr", first=True, ALIGN_CORNERS=True)
AE_SIMPLE: Mapping = {"type": "AESimpleHead", "in_channels": 18, "num_joints": 17, "num_deconv_layers": 0,
                      "tag_per_joint": True, "with_ae_loss": [True]}  # fmt: skip
FLAGS: list[tuple[Mapping, str]] = [
    (seg(), "MODEL.ALIGN_CORNERS"),
    (OCR_YAML, "MODEL.ALIGN_CORNERS"),
    (HIGHER, "MODEL.EXTRA.DECONV.CAT_OUTPUT"),
    (HIGHER, "MODEL.TAG_PER_JOINT"),
    (HIGHER, "MODEL.SYNC_BN"),
    (HIGHER, "LOSS.WITH_AE_LOSS"),
    (MMPOSE, "backbone.extra.stage4.multiscale_output"),
    (MMPOSE, "backbone.multiscale_output"),
    (LANDMARKS, "backbone.extra.upsample.align_corners"),
    ({"backbone": backbone(), "keypoint_head": AE_0X}, "keypoint_head.cat_output"),
    ({"backbone": backbone(), "keypoint_head": AE_0X}, "keypoint_head.tag_per_joint"),
    ({"backbone": backbone(), "keypoint_head": AE_SIMPLE}, "keypoint_head.with_ae_loss"),
    (MMPOSE_0X, "test_cfg.use_udp"),
]
LISTS = ("CAT_OUTPUT", "WITH_AE_LOSS", "cat_output", "with_ae_loss")


@pytest.mark.parametrize("value", ["False", None, 0])
@pytest.mark.parametrize(("mapping", "path"), FLAGS, ids=[path for _, path in FLAGS])
def test_texts_numbers_and_null_are_no_booleans(mapping: Mapping, path: str, value: Any) -> None:
    read(mapping)
    given = [value, value] if path.endswith(LISTS) else value
    if path.endswith("upsample.align_corners") and value is None:  # PyTorch's own default
        assert not read(changed(mapping, path, given)).align_corners
        return
    with pytest.raises(hf.ConfigError, match=f"mistypes {path}: .*a boolean belongs there"):
        read(changed(mapping, path, given))


@pytest.mark.parametrize("options", [{"upstream": "timm"}, {"part": "head"}])
def test_unknown_arguments(options: Mapping) -> None:
    with pytest.raises(hf.ConfigError, match=next(iter(options.values()))):
        read(backbone(), **options)
    with pytest.raises(hf.ConfigError, match="authors"):
        read(POSE, upstream="mmpose")


class Config:
    """What mmengine's has: no mapping, but one inside, and a conversion."""

    def __init__(self, values: Mapping) -> None:
        self._cfg_dict = values

    def to_dict(self) -> Mapping:
        return self._cfg_dict

    @staticmethod
    def fromfile(path: Path, import_custom_modules: bool) -> Config:
        assert import_custom_modules is False
        if "broken" in path.name:
            raise SyntaxError("invalid syntax")
        return Config({"model": DET, "source": path.name})


class Node(dict[str, Any]):
    """yacs' and mmengine's mappings are dictionaries whose keys are attributes too."""

    __getattr__ = dict.__getitem__


def test_config_objects_and_nodes() -> None:
    assert read(Config({"default_scope": "mmdet", "model": DET})) == read(DET)
    assert read(Node(MODEL=Node(POSE["MODEL"]))) == read(POSE)


def test_python_files_are_read_by_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("mmengine.config")
    module.Config = Config
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.config", module)
    for path in ("faster_rcnn.py", Path("faster_rcnn.py")):
        assert read(path) == read(DET)
    with pytest.raises(hf.ConfigError, match=r"broken\.py cannot be read by mmengine: SyntaxError"):
        read("broken.py")


def test_python_files_need_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mmengine", "mmengine.config"):  # the latter is found although the former is not, once imported
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(hf.ConfigError, match=r"config\.py.*pip install mmengine"):
        read("config.py")
