"""Metrics on CUDA, their host side: a batch is added without a wait for the device."""

from __future__ import annotations

import device_counters
import pytest
import torch

from hrnet_fast import metrics

pytestmark = pytest.mark.nulldevice


def test_updates_do_not_wait() -> None:
    faces, sizes = torch.zeros(4, 98, 2, device="cuda"), torch.ones(4, device="cuda")
    joints, shown = torch.zeros(4, 16, 2, device="cuda"), torch.ones(4, 16, device="cuda")
    logits, labels = torch.zeros(2, 7, 8, 8, device="cuda"), torch.zeros(2, 8, 8, dtype=torch.int64, device="cuda")
    annotations = {"images": [], "annotations": [], "categories": []}
    batches = {
        metrics.COCOKeypointAP(annotations, sigmas=[0.1] * 16): (joints, shown, [1, 1, 2, 2], sizes),
        metrics.PCK(): (joints, joints, shown, sizes),
        metrics.PCKh(): (joints, joints, shown, torch.ones(4, 4, device="cuda")),
        metrics.PixelError(): (joints, joints, shown),
        metrics.NME(): (faces, faces, None, [1, 2, 3, 4]),
        metrics.ConfusionMatrix(7): (logits, labels),
        metrics.TopKAccuracy(): (logits[:, :, 0, 0], labels[:, 0, 0]),
    }
    for metric, batch in batches.items():
        for _ in range(2):
            with device_counters.counting() as n:
                metric.update(*batch)  # type: ignore[attr-defined]
            assert (n.errors, n.synchronizations, n.to_host) == (0, 0, 0), metric
            assert n.launches or isinstance(metric, metrics.COCOKeypointAP)
    with device_counters.counting() as n:
        metric.compute()  # the wait
    assert n.to_host
