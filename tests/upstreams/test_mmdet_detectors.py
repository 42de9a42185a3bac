"""Detectors beside the real mmdetection's: its configurations, weights in both directions, detections and losses."""

from __future__ import annotations

import functools
import re
import runpy
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_detectors as golden
import mmcv_ext
import pytest
import torch
from tiny_networks import enliven
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.checkpoints.mmdet_1x import upgrade_detector
from hrnet_fast.detection import KINDS, Detector, ImageMeta, Target, assignment, make_detector_config, total_loss
from hrnet_fast.detection.mmdet_config import read_detector
from hrnet_fast.detection.pictures import prepare

mmcv_ext.install()

import mmdet  # noqa: E402
from mmengine.config import Config  # noqa: E402

FOLDER = Path(mmdet.__file__).parent / ".mim" / "configs" / "hrnet"
PHOTO = Path(hf.__file__).parent / "data" / "astronaut.jpg"
FILES = {
    "faster_rcnn": "faster-rcnn_hrnetv2p-w18-1x_coco",
    "mask_rcnn": "mask-rcnn_hrnetv2p-w18-1x_coco",
    "cascade_rcnn": "cascade-rcnn_hrnetv2p-w18-20e_coco",
    "cascade_mask_rcnn": "cascade-mask-rcnn_hrnetv2p-w18_20e_coco",
    "htc": "htc_hrnetv2p-w18_20e_coco",
    "fcos": "fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco",
}


# Boxes that are sampled, proposed and detected.
FEWER = {512: 64, 1000: 100, 2000: 200, 100: 20}


def shrink(values: Any, width: int) -> Any:
    """Return a configuration with `width` channels where it has 256 or 1024, fewer boxes, and 3 classes for 80."""
    if isinstance(values, (list, tuple)):
        return type(values)(shrink(value, width) for value in values)
    if not isinstance(values, dict):
        return values
    made = {key: shrink(value, width) for key, value in values.items() if key != "init_cfg"}
    made = {key: width if "channels" in key and value in (256, 1024) else value for key, value in made.items()}
    made |= {key: FEWER.get(made[key], made[key]) for key in ("num", "max_per_img") if key in made}
    if "num_classes" in made:
        made["num_classes"] = {80: 3, 183: 7}[made["num_classes"]]
    return made


def small(kind: str) -> Config:
    config = Config.fromfile(FOLDER / f"{FILES[kind]}.py")
    model = shrink(config.model.to_dict(), 32 if kind == "fcos" else 16)  # FCOS has 32 groups
    extra = model["backbone"]["extra"]
    for k in (1, 2, 3, 4):
        stage = extra[f"stage{k}"]
        stage["num_modules"], stage["num_blocks"] = 1, (1,) * len(stage["num_blocks"])
        stage["num_channels"] = (4,) if k == 1 else tuple(4 << i for i in range(k))
    model["neck"]["in_channels"] = [4, 8, 16, 32]
    return Config({"model": model, "default_scope": "mmdet"})


def theirs(config: Config) -> nn.Module:
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return MODELS.build(config.model)  # type: ignore[no-any-return]


def samples(metas: list[ImageMeta], targets: list[Target] | None = None) -> list[Any]:
    """Return mmdetection's data samples."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    found = []
    for i, meta in enumerate(metas):
        info = {"img_shape": meta.size, "ori_shape": meta.original_size, "scale_factor": meta.scale}
        one = DetDataSample(metainfo=info | {"pad_shape": meta.padded_size, "batch_input_shape": (192, 256)})
        if targets is not None:
            target = targets[i]
            masks = BitmapMasks(target.masks.numpy().astype("uint8"), *meta.size)
            one.gt_instances = InstanceData(bboxes=target.boxes, labels=target.labels, masks=masks)
            one.gt_sem_seg = PixelData(sem_seg=target.semantic[None])
        found.append(one)
    return found


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let mmdetection compute in float64 where it names float32, and both take the first candidates."""
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head
    from mmdet.models.task_modules import AnchorGenerator, RandomSampler

    class Float64(types.ModuleType):
        float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    priors = AnchorGenerator.grid_priors
    wide = functools.partialmethod(priors, dtype=torch.float64)
    monkeypatch.setattr(AnchorGenerator, "grid_priors", wide)
    monkeypatch.setattr(fcn_mask_head, "torch", Float64("torch"))
    monkeypatch.setattr(RandomSampler, "random_choice", lambda self, gallery, number: gallery[:number])
    monkeypatch.setattr(assignment, "choose", lambda candidates, number, generator: candidates[:number])
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def legacy(values: Any) -> Any:
    """Return a configuration with the parts that mmdetection 3.3 has for files of 1.x."""
    if isinstance(values, list):
        return [legacy(value) for value in values]
    if not isinstance(values, dict):
        return values
    made = {key: legacy(value) for key, value in values.items()}
    if made.get("type") == "AnchorGenerator":
        made |= {"type": "LegacyAnchorGenerator", "center_offset": 0.5}
    elif made.get("type") == "DeltaXYWHBBoxCoder":
        made["type"] = "LegacyDeltaXYWHBBoxCoder"
    elif made.get("type") == "RoIAlign":
        made |= {"sampling_ratio": 2, "aligned": False}
    return made


def pair(kind: str, tmp_path: Path, config: Config | None = None) -> tuple[nn.Module, Detector]:
    """mmdetection's detector, and this package's from a file with its weights; each loads the other's file strictly."""
    config = config or small(kind)
    model = enliven(theirs(config))
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "theirs.pth")
    loaded = hf.load_checkpoint(tmp_path / "theirs.pth", impl="reference")
    assert loaded.family == f"mmdet_{kind}"
    own = Detector.from_config(config, impl="reference").eval()
    assert loaded.config.kind == own.config.kind == kind
    own.load_state_dict(loaded.state_dict())
    hf.save_checkpoint(own.state_dict(), tmp_path / "own.pth")
    again = theirs(config)
    again.load_state_dict(torch.load(tmp_path / "own.pth"), strict=True)
    assert set(own.state_dict()) == set(model.state_dict())
    return again, own


def assert_close(actual: Tensor, expected: Tensor, bound: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def assert_same_detections(found: Any, theirs: Any, bound: float) -> None:
    assert len(found.boxes) == len(theirs.bboxes) > 0
    assert_close(found.boxes, theirs.bboxes, bound)
    assert_close(found.scores, theirs.scores, bound)
    assert torch.equal(found.labels, theirs.labels)
    if found.masks is not None:
        assert torch.equal(found.masks, theirs.masks)


def case() -> tuple[Tensor, list[ImageMeta], list[Target]]:
    """Two images of different size: one with objects whose best anchors are unambiguous, one without any."""
    _, (target,), (meta,) = golden.training("fcos")
    smaller = ImageMeta((150, 210), (125, 174), (210 / 174, 1.2), (160, 224))
    images = golden.batch([[1, 3, 180, 240], [1, 3, 150, 210]])
    rows, columns = torch.arange(180)[:, None] + 0.5, torch.arange(240)[None] + 0.5
    boxes = target.boxes[:, :, None, None]
    inside = (columns > boxes[:, 0]) & (columns < boxes[:, 2]) & (rows > boxes[:, 1]) & (rows < boxes[:, 3])
    semantic = (torch.arange(192)[:, None] // 16 + torch.arange(256)[None] // 16) % 7
    first = Target(target.boxes, target.labels % 3, inside, None, semantic)
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 150, 210), None, semantic)
    return images, [meta, smaller], [first, none]


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "early"), [*((kind, False) for kind in KINDS), ("mask_rcnn", True), ("htc", True)])
def test_detections_and_losses(kind: str, early: bool, tmp_path: Path, in_float64: None) -> None:
    """Also with the parts of 1.x."""
    model, own = pair(kind, tmp_path, Config(legacy(small(kind).to_dict())) if early else None)
    assert own.config.legacy == early
    model, own = model.double().eval(), own.double().eval()
    images, metas, targets = case()
    with torch.no_grad():
        expected = model.predict(images, samples(metas), rescale=True)
    for found, one in zip(own.predict(images, metas), expected, strict=True):
        assert_same_detections(found, one.pred_instances, 1e-9)
    expected = model.train().loss(images, samples(metas, targets))
    losses = own.train().losses(images, targets, metas)
    assert list(losses) == list(expected)
    for name, value in losses.items():
        for ours, one in zip(*(v if isinstance(v, list) else [v] for v in (value, expected[name])), strict=True):
            assert_close(ours.reshape(-1), one.reshape(-1), 1e-9)
    total_loss(losses).backward()
    model.parse_losses(expected)[0].backward()
    gradients = {key: p.grad for key, p in own.named_parameters()}
    for key, parameter in model.named_parameters():
        assert_close(gradients[key].norm(), parameter.grad.norm(), 1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos", "htc"])
def test_the_photograph(kind: str, tmp_path: Path) -> None:
    """In float32, from the file that this package wrote."""
    model, own = pair(kind, tmp_path)
    own.config = own.config.override(short_side=256)
    images, metas = prepare([PHOTO], own.config.picture, torch.zeros(1))
    with torch.no_grad():
        (expected,) = model.eval().predict(images, samples(metas), rescale=True)
    (found,) = own([PHOTO])
    assert_same_detections(found, expected.pred_instances, 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_shipped_configurations() -> None:
    """All of mmdetection's detectors on HRNetV2p are those of ``make_detector_config``."""
    files = [path for path in sorted(FOLDER.glob("*.py")) if "hrnet" in path.name]
    assert len(files) == 29
    for path in files:
        kind, width = re.match(r"(.*)_hrnetv2p-w(\d+)", path.name).groups()
        assert read_detector(path) == make_detector_config(kind.replace("-", "_"), int(width)), path.name


REFUSED: dict[str, Any] = {
    "rpn_head.anchor_generator.octave_base_scale": 4,
    "rpn_head.num_convs": 2,
    "roi_head.bbox_head.type": "DoubleConvFCBBoxHead",
    "roi_head.bbox_head.loss_bbox.type": "GIoULoss",
    "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": 2,
    "roi_head.mask_head.upsample_cfg": {"type": "carafe", "scale_factor": 2},
    "train_cfg.rcnn.sampler.type": "OHEMSampler",
    "test_cfg.rcnn.nms.type": "soft_nms",
    "test_cfg.rpn.min_bbox_size": -1,
    "rpn_head.bbox_coder.type": "LegacyDeltaXYWHBBoxCoder",
    "roi_head.bbox_roi_extractor.roi_layer.aligned": False,
    "roi_head.mask_head.num_classes": 9,
    "train_cfg.rpm": {},
    "test_cfg.rcnnn": {},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_cannot_be_built(key: str) -> None:
    config = small("mask_rcnn")
    config.merge_from_dict({f"model.{key}": REFUSED[key]})
    with pytest.raises(hf.ConfigError):
        Detector.from_config(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ["bbox_roi_extractor", "mask_roi_extractor"])
def test_extractors_that_differ(key: str) -> None:
    """The second stage pools from other levels than the first."""
    config = small("cascade_mask_rcnn")
    extractor = config.model.roi_head[key].to_dict()
    config.model.roi_head[key] = [extractor] * 3
    assert read_detector(config).roi.strides == (4, 8, 16, 32)
    config.model.roi_head[key] = [extractor, extractor | {"finest_scale": 28}, extractor]
    with pytest.raises(hf.ConfigError, match=f"{key} needs the same settings in every stage"):
        read_detector(config)


@pytest.mark.filterwarnings("ignore")
def test_fcos_reads_its_settings() -> None:
    """Of a file without statistics they are the shipped FCOS's; a loop beside the model is none of its settings."""
    config = small("fcos")
    del config.model["data_preprocessor"]
    config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": 12}
    assert read_detector(config).picture == make_detector_config("fcos").picture
    config.model.train_cfg = {"assigner": {"type": "MaxIoUAssigner"}, "pos_weight": -1, "debug": False}
    read_detector(config)
    config.model.train_cfg = {"center_sampling": True}
    with pytest.raises(hf.ConfigError, match="center_sampling"):
        read_detector(config)


@pytest.mark.filterwarnings("ignore")
def test_proposals_of_training() -> None:
    """``rpn_proposal`` is read without ``rpn``, and required beside it."""
    config = small("faster_rcnn")
    del config.model.train_cfg["rpn"]
    config.model.train_cfg.rpn_proposal.nms_pre = 77
    assert read_detector(config).rpn.train_proposals.before_nms == 77
    config = small("faster_rcnn")
    del config.model.train_cfg["rpn_proposal"]
    with pytest.raises(hf.ConfigError, match=r"lacks train_cfg\.rpn_proposal"):
        read_detector(config)


RESIZE = {"type": "Resize", "scale": (640, 480), "keep_ratio": True}
AUGMENT = {"type": "MultiScaleFlipAug", "img_scale": (640, 480), "flip": False, "transforms": [{"type": "Resize"}]}
OTHER_RESIZES: list[list[dict[str, Any]]] = [
    [RESIZE | {"keep_ratio": False}],
    [{"type": "Resize", "scale": (640, 480)}],
    [RESIZE | {"type": "FixScaleResize"}],
    [{"type": "Resize", "scale_factor": 0.5, "keep_ratio": True}],
    [RESIZE, RESIZE],
    [AUGMENT | {"img_scale": [(640, 480), (1333, 800)]}],
    [AUGMENT | {"transforms": [{"type": "Resize", "keep_ratio": False}]}],
    [AUGMENT | {"flip": True}],
]


@pytest.mark.filterwarnings("ignore")
def test_the_test_pipeline() -> None:
    config = small("faster_rcnn")
    for step in (RESIZE, AUGMENT):
        config.test_pipeline = [{"type": "LoadImageFromFile"}, step]
        picture = read_detector(config).picture
        assert (picture.long_side, picture.short_side) == (640, 480)
    for pipeline in OTHER_RESIZES:
        config.test_pipeline = pipeline
        with pytest.raises(hf.ConfigError, match="test_pipeline"):
            read_detector(config)


NORM = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 3.0], "to_rgb": True}  # of 2.x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("steps", "divisor"),
    [
        ([], 32),  # without a pipeline, as shipped
        ([RESIZE], 1),
        ([AUGMENT | {"transforms": [{"type": "Resize"}, {"type": "Pad", "size_divisor": 64}]}], 64),
        ([{"type": "Pad", "size": (640, 640)}], None),
    ],
)
def test_padding_of_early_files(steps: list[dict[str, Any]], divisor: int | None) -> None:
    config = small("faster_rcnn")
    del config.model["data_preprocessor"]
    config.img_norm_cfg, config.test_pipeline = NORM, steps
    if divisor is None:
        with pytest.raises(hf.ConfigError, match="accepted is one Pad with size_divisor"):
            read_detector(config)
    else:
        assert read_detector(config).picture.divisor == divisor


@pytest.mark.filterwarnings("ignore")
def test_padding_of_the_preprocessor() -> None:
    """Its own default is mmdetection's."""
    config = small("faster_rcnn")
    del config.model.data_preprocessor["pad_size_divisor"]
    built = theirs(config).data_preprocessor.pad_size_divisor
    assert read_detector(config).picture.divisor == built == 1
    config.test_pipeline = [RESIZE, {"type": "Pad", "size_divisor": 32}]
    with pytest.raises(hf.ConfigError, match="test_pipeline has Pad"):
        read_detector(config)


def test_files_of_1x_are_upgraded_as_by_mmdetection() -> None:
    """By its own converter's functions. It cuts the biases of deltas and masks at the other end than their weights."""
    tool = FOLDER.parents[1] / "tools" / "model_converters" / "upgrade_model_version.py"
    functions = runpy.run_path(str(tool))
    change = {"fc_cls": "reorder_cls_channel", "fc_reg": "truncate_reg_channel", "conv_logits": "truncate_cls_channel"}
    made = {layer: torch.randn(rows, 8) for layer, rows in (("fc_cls", 4), ("fc_reg", 16))}
    made["conv_logits"] = torch.randn(4, 8, 1, 1)
    early = {f"{'mask' if layer == 'conv_logits' else 'bbox'}_head.{layer}.weight": w for layer, w in made.items()}
    early |= {key.replace("weight", "bias"): w.flatten(1).sum(dim=1) for key, w in early.items()}
    upgraded = upgrade_detector(early | {"rpn_head.rpn_cls.weight": torch.zeros(3, 8, 1, 1)}, [])
    assert upgraded is not None
    for key in early:
        weight = upgraded[f"roi_head.{key}"]
        if key.endswith("weight"):
            assert torch.equal(weight, functions[change[key.split(".")[1]]](early[key], 4))
        else:  # of the rows that weights have
            rows = upgraded[f"roi_head.{key}".replace("bias", "weight")]
            assert torch.equal(weight, rows.flatten(1).sum(dim=1))
    assert upgrade_detector(upgraded, []) is None
