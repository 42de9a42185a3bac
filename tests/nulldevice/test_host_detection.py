"""Detectors on CUDA, their host side: proposals are selected with one wait, for the number of boxes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import device_counters
import pytest
import torch
from tiny_detectors import tiny_detector

from hrnet_fast.detection import ImageMeta, operators

pytestmark = pytest.mark.nulldevice


def test_proposals_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides what torchvision's suppression waits for, which is replaced: without values it keeps anything."""

    def keep_all(boxes: Any, *_: Any) -> Any:
        return torch.empty(len(boxes), dtype=torch.int64, device="cuda")

    monkeypatch.setattr(operators, "torchvision_operators", lambda: SimpleNamespace(batched_nms=keep_all))
    model = tiny_detector("faster_rcnn").cuda()
    metas = [ImageMeta((96, 128)), ImageMeta((80, 100))]
    with torch.no_grad():
        outputs = model.rpn_head(model.levels(torch.zeros(2, 3, 96, 128, device="cuda")))
    for _ in range(2):  # the first copies anchors and sizes to the device
        with device_counters.counting() as n:
            model.rpn_head.proposals(outputs, metas, model.config.rpn.test_proposals)
    assert (n.errors, n.synchronizations, n.to_host) == (0, 1, 1)
    assert n.launches > 50
