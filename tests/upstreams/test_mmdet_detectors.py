"""Detectors beside the real mmdetection's: its configurations, weights in both directions, detections and losses."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden_detectors as golden
import pytest
import torch
from mmengine.config import Config
from small_mmdet import legacy, small, theirs
from tiny_networks import enliven
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.detection import KINDS, Detector, ImageMeta, Target, assignment, total_loss
from hrnet_fast.detection.pictures import prepare

PHOTO = Path(hf.__file__).parent / "data" / "astronaut.jpg"


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
    monkeypatch.setattr(assignment, "draw_some", lambda candidates, number, generator: candidates[:number])
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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
