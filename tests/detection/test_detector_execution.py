"""Detectors whose backbone is accelerated, and whose dense parts engines execute."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_detectors import target, tiny_detector
from tiny_networks import image, relative_l2

import hrnet_fast as hf
from hrnet_fast.detection import Detector, total_loss

OBJECTS = [[8.0, 8.0, 60.0, 50.0], [40.0, 30.0, 120.0, 90.0]]


def test_accelerated_and_by_engines() -> None:
    """The backbone takes the fused step, and an engine executes backbone and neck in place; results stay."""
    model = tiny_detector("faster_rcnn", score_threshold=0.0)
    fast = hf.accelerate(copy.deepcopy(model).train(), impl="reference")
    x, objects = image(96, 128), [target(OBJECTS)]
    losses = [
        total_loss(m.losses(x, objects, generator=torch.Generator().manual_seed(0))) for m in (model.train(), fast)
    ]
    torch.testing.assert_close(*losses)
    assert all(block.fast for block in hf.explain(fast).blocks)
    model.eval()
    (expected,) = model(x)
    prepared = hf.optimize_for_inference(copy.deepcopy(model), x)
    assert isinstance(prepared, Detector)
    (found,) = prepared(x)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-3, atol=1e-2)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize(("kind", "head"), [("faster_rcnn", "rpn_head"), ("fcos", "bbox_head")])
def test_engines_execute_all_that_is_dense(kind: str, head: str) -> None:
    """Backbone, neck and the head over all places, in sizes other than the example's too."""
    model = tiny_detector(kind, divisor=64)
    prepared = hf.optimize_for_inference(copy.deepcopy(model), image(64, 96))
    pictures = [np.zeros((h, w, 3), np.uint8) for h, w in ((600, 790), (590, 800))]  # of one shape, when padded so
    shapes = {model.prepare([picture])[0].shape for picture in pictures}
    assert [tuple(shape) for shape in shapes] == [(1, 3, 832, 1088)]
    for x in (image(64, 96), image(96, 128, batch=2)):
        with torch.no_grad():
            expected, found = (m.get_submodule(head)(m.levels(x)) for m in (model, prepared))
        for a, b in zip(expected, found, strict=True):
            assert all(relative_l2(ours, one) < 1e-5 for ours, one in zip(b, a, strict=True))
    parts = {block.name: (block.kind, block.fast, block.reason) for block in hf.explain(prepared).blocks}
    assert parts == dict.fromkeys(("backbone", "neck", head), ("engine", True, ""))
