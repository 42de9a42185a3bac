"""Detectors on HRNetV2p-W18 in float64 against what mmdetection 3.3 recorded."""

from __future__ import annotations

import functools

import golden_detectors as golden
import numpy as np
import pytest
import torch
from torch import Tensor

from hrnet_fast.detection import KINDS, Detector, assignment, total_loss
from hrnet_fast.detection.mask_head import of_class, paste_masks
from hrnet_fast.detection.results import Regions, sizes_of

CLOSE = 1e-9
TWO_STAGES = tuple(kind for kind in KINDS if kind != "fcos")


class KnownLevels(Detector):
    """A detector whose pyramid of the golden picture was computed before."""

    known: tuple[Tensor, ...]

    def levels(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.known


@functools.cache
def golden_levels(one_stage: bool) -> tuple[Tensor, ...]:
    """The pyramid, once for all two-stage detectors: their layers of the same name have the same weights."""
    kind = "fcos" if one_stage else "faster_rcnn"
    with torch.no_grad():
        return golden.detector(kind).levels(golden.evaluation(kind)[0])


def assert_maps(kind: str, name: str, maps: list[Tensor] | tuple[Tensor, ...]) -> None:
    for i, one in enumerate(maps):
        assert golden.distance(golden.fingerprint(one), golden.results(kind)[f"{name}_{i}"]) < CLOSE


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation(kind: str) -> None:
    expected = golden.results(kind)
    model = golden.detector(kind, heads=True)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == golden.shapes(kind)
    images, metas = golden.evaluation(kind)
    model.__class__, model.known = KnownLevels, golden_levels(kind == "fcos")
    levels = model.levels(images)
    assert_maps(kind, "pyramid", levels)
    with torch.no_grad():
        if kind == "fcos":
            for name, maps in zip(("fcos_cls", "fcos_reg", "fcos_ctr"), model.bbox_head(levels), strict=True):
                assert_maps(kind, name, maps)
        else:
            check_two_stages(kind, model, levels)
    if model.config.roi is not None and model.config.roi.mask is not None:
        return  # `check_two_stages` has looked at five masks; a hundred would take most of the time
    (found,) = model.predict(images, metas)
    assert golden.distance(found.boxes, expected["boxes"]) < CLOSE
    assert golden.distance(found.scores, expected["scores"]) < CLOSE
    assert np.array_equal(found.labels.numpy(), expected["labels"])


def check_two_stages(kind: str, model: Detector, levels: tuple[Tensor, ...]) -> None:
    """Proposals, each stage's outputs for the first 50 of them, and the masks of the first five detections."""
    expected, metas = golden.results(kind), golden.evaluation(kind)[1]
    outputs = model.rpn_head(levels)
    for name, maps in zip(("rpn_cls", "rpn_reg"), outputs, strict=True):
        assert_maps(kind, name, maps)
    proposals = model.rpn_head.proposals(outputs, metas, model.config.rpn.test_proposals)
    assert golden.distance(proposals.boxes, expected["proposals"]) < CLOSE
    assert golden.distance(proposals.scores, expected["proposal_scores"]) < CLOSE
    semantic = None
    if kind == "htc":
        logits, semantic = model.roi_head.semantic_head(levels)
        for name, found in (("semantic_pred", logits), ("semantic_feat", semantic)):
            assert golden.distance(golden.fingerprint(found), expected[name]) < CLOSE
    boxes, image = proposals.boxes[:50], proposals.image[:50]
    for stage, head in enumerate(model.roi_head.box_heads):
        assert golden.distance(boxes, expected[f"bbox_rois_{stage}"]) < CLOSE
        logits, deltas = model.roi_head.box_outputs(stage, levels, Regions(boxes, image), semantic)
        assert golden.distance(logits, expected[f"bbox_cls_{stage}"]) < CLOSE
        assert golden.distance(deltas, expected[f"bbox_reg_{stage}"]) < CLOSE
        boxes = head.refine(boxes, logits, deltas, sizes_of(metas, boxes.device)[image], None)
    if not model.roi_head.mask_heads:
        return
    if kind != "cascade_mask_rcnn":  # its three box stages run the code of Cascade R-CNN
        found = model.roi_head._boxes(levels, proposals, metas, semantic, False)
        assert golden.distance(found.boxes, expected["noscale_boxes"]) < CLOSE
        assert golden.distance(found.scores, expected["scores"]) < CLOSE
        assert np.array_equal(found.labels.numpy(), expected["labels"])
    boxes, labels = (torch.from_numpy(expected[name][:5]) for name in ("noscale_boxes", "labels"))
    check_masks(kind, model, levels, Regions(boxes, torch.zeros(5, dtype=torch.long), labels=labels), semantic)


def check_masks(
    kind: str, model: Detector, levels: tuple[Tensor, ...], found: Regions, semantic: Tensor | None
) -> None:
    expected, (meta,) = golden.results(kind), golden.evaluation(kind)[1]
    logits = [of_class(one, found.labels) for one in model.roi_head.mask_outputs(levels, found, semantic)]
    for stage, one in enumerate(logits):
        assert golden.distance(one, expected[f"mask_logits5_{stage}"]) < CLOSE
    used = logits[-1:] if kind == "htc" else logits
    shares = torch.stack([one.sigmoid() for one in used]).mean(dim=0)
    boxes = found.boxes / found.boxes.new_tensor([*meta.scale, *meta.scale])
    assert golden.distance(boxes, expected["boxes"][:5]) < CLOSE
    masks = paste_masks(shares, boxes, meta.original_size, model.config.roi.mask_threshold)
    assert np.array_equal(np.packbits(masks.flatten(1).numpy(), axis=1), expected["mask_bits"])


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos"])
def test_training(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss entry, and the norm of every gradient; as in the recording, the first candidates are sampled."""
    monkeypatch.setattr(assignment, "draw_some", lambda candidates, number, generator: candidates[:number])
    expected = golden.results(kind)
    model = golden.detector(kind).train()
    images, targets, metas = golden.training(kind)
    losses = model(images, targets, metas)
    found = {}
    for name, value in losses.items():
        entries = {f"{name}.{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
        found |= {key: float(one.detach()) for key, one in entries.items()}
    wanted = dict(zip(expected["loss_names"].tolist(), expected["loss"].tolist(), strict=True))
    assert found == pytest.approx(wanted, rel=CLOSE, abs=0)
    total_loss(losses).backward()
    norms = {key: float(p.grad.norm()) for key, p in model.named_parameters()}
    wanted = dict(zip(expected["grad_keys"].tolist(), expected["grad_norm"].tolist(), strict=True))
    assert norms == pytest.approx(wanted, rel=1e-7, abs=0)
