"""Detectors of every kind: pictures, unusual inputs, parts and errors."""

from __future__ import annotations

import builtins
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import CLASSES, target, tiny_detector, tiny_detector_config
from tiny_networks import image
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.detection import KINDS, Detector, ImageMeta, total_loss
from hrnet_fast.detection.assignment import BACKGROUND, LEFT_OUT, assign, draw_some, sample
from hrnet_fast.detection.boxes import decode, encode
from hrnet_fast.detection.config_parts import AssignConfig, SampleConfig
from hrnet_fast.detection.mask_head import paste_masks
from hrnet_fast.detection.operators import best_of_levels, suppress
from hrnet_fast.detection.results import Regions
from hrnet_fast.errors import MissingPackageError

OBJECTS = [[8.0, 8.0, 60.0, 50.0], [40.0, 30.0, 120.0, 90.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_predicts_and_learns(kind: str) -> None:
    """Of an image with objects and one without any; every parameter gets a finite gradient."""
    model = tiny_detector(kind, score_threshold=0.0)
    x = image(96, 128, batch=2)
    for found in model(x):
        assert 0 < len(found) <= 100
        assert found.boxes.shape == (len(found), 4)
        assert bool((found.scores[:-1] >= found.scores[1:]).all())
        assert 0 <= int(found.labels.min()) <= int(found.labels.max()) < CLASSES
        assert (found.masks is None) == (model.config.roi is None or model.config.roi.mask is None)
        assert found.masks is None or (found.masks.shape == (len(found), 96, 128) and found.masks.dtype == torch.bool)
    model.train()
    losses = model(x, [target(OBJECTS), target([])])
    assert all("loss" in name or name.endswith("acc") for name in losses)
    total_loss(losses).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    steady = [m.training for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(steady)  # as mmdetection's HRNet, whose norm_eval is True


def test_pictures_and_batches_agree() -> None:
    """A picture is a path, a Pillow image or bytes; results are in its own pixels."""
    model = tiny_detector("mask_rcnn", score_threshold=0.0, short_side=64, long_side=100)
    pixels = np.random.RandomState(0).randint(0, 256, (48, 80, 3), dtype=np.uint8)
    given = [pixels, torch.from_numpy(pixels), Image.fromarray(pixels)]
    first, *others = model(given)
    assert first.masks.shape[1:] == (48, 80)
    limits = first.boxes.new_tensor([80, 48, 80, 48]) + 1e-3
    assert bool((first.boxes >= 0).all())
    assert bool((first.boxes <= limits).all())
    for other in others:
        assert torch.equal(other.boxes, first.boxes)
        assert torch.equal(other.masks, first.masks)
    (alone,) = model([pixels])
    torch.testing.assert_close(alone.boxes, first.boxes, rtol=1e-4, atol=1e-3)


def test_no_detections() -> None:
    """With masks and without, where no score or no proposal passes."""
    for kind in KINDS:
        for found in tiny_detector(kind, score_threshold=1.0)(image(64, 96, batch=2)):
            assert found.boxes.shape == (0, 4)
            assert len(found) == 0
            assert found.masks is None or found.masks.shape == (0, 64, 96)
    model = tiny_detector("htc")
    rpn = dataclasses.replace(model.config.rpn.test_proposals, least_size=1e6)
    model.config = dataclasses.replace(model.config, rpn=dataclasses.replace(model.config.rpn, test_proposals=rpn))
    assert [len(found) for found in model(image(64, 96, batch=2))] == [0, 0]


@pytest.mark.parametrize("kind", ["mask_rcnn", "htc", "fcos"])
def test_unusual_objects(kind: str) -> None:
    """No object in any image, boxes of no area, boxes and masks beyond the picture, crowds."""
    model = tiny_detector(kind).train()
    x = image(96, 128, batch=2)
    assert bool(total_loss(model(x, [target([]), target([])])).isfinite())
    flat = target([[10.0, 10.0, 10.0, 40.0], [20.0, 20.0, 10.0, 30.0]])
    torch.manual_seed(1)
    expected = total_loss(model(x, [target([]), target(OBJECTS)]))
    torch.manual_seed(1)
    assert torch.equal(total_loss(model(x, [flat, target(OBJECTS)])), expected)
    beyond = target([[-30.0, -20.0, 40.0, 50.0], [90.0, 60.0, 170.0, 130.0]])
    crowd = target(OBJECTS, ignored=torch.tensor([[0.0, 0.0, 128.0, 96.0]]))
    total = total_loss(model(x, [beyond, crowd]))
    total.backward()
    assert bool(total.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_images_of_different_size() -> None:
    """Proposals and detections stay in each image, and other images of a batch change nothing."""
    model = tiny_detector("cascade_rcnn", score_threshold=0.0).double()
    x = torch.zeros(2, 3, 96, 128, dtype=torch.float64)
    x[0] = image(96, 128)[0]
    x[1, :, :64, :80] = image(64, 80)[0]
    metas = [ImageMeta((96, 128)), ImageMeta((64, 80), (32, 40), (2.0, 2.0))]
    _, second = model.predict(x, metas)
    assert bool((second.boxes <= torch.tensor([40.0, 32.0, 40.0, 32.0])).all())
    (alone,) = model.predict(x[1:], metas[1:])
    torch.testing.assert_close(alone.boxes, second.boxes)


def test_five_thousand_candidates() -> None:
    """Suppression over images and classes at once keeps what a loop over both keeps."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(5000, 2, generator=generator) * 200
    boxes = torch.cat([corners, corners + 5 + torch.rand(5000, 2, generator=generator) * 60], dim=1)
    scores = torch.rand(5000, generator=generator)
    scores[100:200] = scores[0]  # of equal scores the first wins
    image_of = torch.arange(5000) // 2500
    label = torch.randint(0, 7, (5000,), generator=generator)
    dropped = torch.zeros(5000, dtype=torch.bool)
    dropped[::50] = True  # they overlap what is better, and are never kept
    found = Regions(boxes, image_of, scores.masked_fill(dropped, -torch.inf), label)
    kept = suppress(found, label, 7, 2, 0.5, 400)
    expected = []
    for i in range(2):
        chosen = []
        for c in range(7):
            rows = ((image_of == i) & (label == c) & ~dropped).nonzero()[:, 0]
            chosen.append(rows[torch.from_numpy(greedy(boxes[rows].double(), scores[rows], 0.5))])
        rows = torch.cat(chosen).sort().values
        expected.append(rows[scores[rows].argsort(descending=True, stable=True)][:400])
    rows = torch.cat(expected)
    assert torch.equal(kept.boxes, boxes[rows])
    assert torch.equal(kept.scores, scores[rows])
    assert torch.equal(kept.labels, label[rows])
    assert torch.equal(kept.image, image_of[rows])
    assert kept.counts == [400, len(expected[1])]


def greedy(boxes: Tensor, scores: Tensor, iou: float) -> np.ndarray:
    """Return the kept rows of non-maximum suppression, one box after another."""
    from hrnet_fast.detection.boxes import box_iou

    overlaps, kept = box_iou(boxes, boxes).numpy(), list[int]()
    for row in scores.argsort(descending=True, stable=True).tolist():
        if not kept or overlaps[row, kept].max() <= iou:
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def test_best_of_levels() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, float("nan"), 0.3, -torch.inf, 0.7]])
    image_of, entry, level, best = best_of_levels(scores, [3, 2, 2], 2)
    taken = best > -torch.inf
    assert taken.tolist() == [True, True, False, True, True, False]
    assert image_of.tolist() == [0] * 6
    assert entry[taken].tolist() == [1, 2, 4, 6]
    assert level.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(best[taken], scores[0, entry[taken]])
    # A level with fewer entries has all of them.
    assert best_of_levels(torch.arange(8.0).view(2, 4), [3, 1], 2)[1].tolist() == [2, 1, 3] * 2


def test_assignment() -> None:
    objects = target([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 40.0, 40.0]], ignored=torch.tensor([[60.0, 60.0, 90.0, 90.0]]))
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 11.0], [0.0, 0.0, 30.0, 22.0], [0.0, 0.0, 40.0, 28.0], [70.0, 70.0, 80.0, 80.0]]
    )
    plain = AssignConfig(0.75, 0.3, 0.3)
    assert assign(boxes, objects, plain).tolist() == [0, LEFT_OUT, LEFT_OUT, BACKGROUND]
    low = dataclasses.replace(plain, match_low_quality=True)
    assert assign(boxes, objects, low).tolist() == [0, LEFT_OUT, 1, BACKGROUND]
    crowds = dataclasses.replace(plain, ignore_iof=0.5)
    assert assign(boxes, objects, crowds).tolist() == [0, LEFT_OUT, LEFT_OUT, LEFT_OUT]
    assert assign(boxes[:0], objects, low).shape == (0,)
    assert assign(boxes, target([]), low).tolist() == [BACKGROUND] * 4


def test_samples_are_drawn_by_the_generator() -> None:
    found = torch.tensor([0] * 50 + [BACKGROUND] * 500 + [LEFT_OUT] * 9)
    config = SampleConfig(64, 0.25)
    first, again, other = (sample(found, config, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert [len(part) for part in first] == [16, 48]
    assert bool((found[first[0]] == 0).all())
    assert bool((found[first[1]] == BACKGROUND).all())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert sorted(draw_some(torch.arange(5), 5, None).tolist()) == list(range(5))


def test_deltas() -> None:
    boxes, goals = torch.rand(2, 20, 4, dtype=torch.float64).sort(dim=2).values.unbind()
    boxes, goals = (b[:, [0, 1, 2, 3]] * 50 for b in (boxes, goals))
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode(boxes, encode(boxes, goals, stds), stds), goals)
    size = torch.tensor([[30, 20]])
    assert decode(boxes, torch.full((20, 4), 50.0), stds, size).max() <= 30


def test_masks_beyond_the_picture() -> None:
    whole = torch.ones(3, 4, 4)
    boxes = torch.tensor([[-10.0, -10.0, 5.0, 6.0], [3.0, 3.0, 3.0, 9.0], [100.0, 100.0, 120.0, 120.0]])
    masks = paste_masks(whole, boxes, (20, 30), 0.5)
    assert masks.shape == (3, 20, 30)
    assert masks[0].nonzero().max(dim=0).values.tolist() == [5, 4]
    assert masks[0].sum() == 29  # the corner is rounded
    assert not masks[1:].any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn"])
def test_learns_two_pictures(kind: str) -> None:
    """A step of the losses' gradients goes the right way, again and again."""
    model = tiny_detector(kind).train()
    x = image(96, 128, batch=2) * 0.3
    x[0, 0, 8:50, 8:60] += 3
    x[1, 1, 30:90, 40:120] += 3
    objects = [target([OBJECTS[0]]), target([OBJECTS[1]])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = []
    for _ in range(20):
        total = total_loss(model(x, objects))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        history.append(float(total.detach()))
    assert history[-1] < 0.7 * history[0]


@pytest.mark.parametrize("kind", ["fcos", "htc"])
@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_sixteen_bits(kind: str, how: str) -> None:
    """Boxes and losses stay in float32, where pixels can be told apart."""
    model, x = tiny_detector(kind, score_threshold=0.0), image(96, 128)
    objects = [target(OBJECTS)]
    seed = torch.Generator()
    exact = total_loss(model.train().losses(x, objects, generator=seed.manual_seed(0)))
    if how == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        total = total_loss(model.losses(x, objects, generator=seed.manual_seed(0)))
        (found,) = model.eval()(x)
    assert total.dtype == found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(total, exact, rtol=0.1, atol=0)
    assert bool((found.boxes != found.boxes.bfloat16()).any())
    total.backward()


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "torchvision":
            raise ImportError("No module named 'torchvision'")
        return real(name, *args, **options)

    config = tiny_detector_config("fcos")
    state = tiny_detector("fcos").state_dict()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"pip install 'hrnet-fast\[detection\]'"):
        Detector(config)
    assert "neck.reduction_conv.conv.weight" in hf.convert_checkpoint(state, to="mmdet")  # which computes nothing
