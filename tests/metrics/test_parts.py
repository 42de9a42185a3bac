"""Metrics over parts: batches, merged metrics and two processes give the figures of all together."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_predictions import classification, faces, mpii, poses, segmentation

from hrnet_fast import metrics

Update = Callable[[metrics.Metric, slice], None]


def detections() -> tuple[metrics.Metric, Update]:
    annotations = poses()[0]
    results = [
        {
            "image_id": person["image_id"],
            "category_id": 1,
            "score": 1 / (i + 1),
            "bbox": [x + 2.0 for x in person["bbox"]],
        }
        for i, person in enumerate(annotations["annotations"])
    ]
    return metrics.COCODetectionAP(annotations), lambda metric, part: metric.update(results[part])  # type: ignore[attr-defined]


def by_name(metric: metrics.Metric, made: dict[str, torch.Tensor]) -> tuple[metrics.Metric, Update]:
    return metric, lambda m, part: m.update(**{k: v[part] for k, v in made.items()})  # type: ignore[attr-defined]


def cases() -> dict[str, tuple[metrics.Metric, Update]]:
    """Return metrics and a function that adds a part of the made predictions to one."""
    boxes = mpii()
    corners = boxes.pop("head_boxes")
    logits, labels = (torch.cat(column) for column in zip(*segmentation(), strict=True))
    first, of = classification()
    return {
        "keypoint AP": by_name(metrics.COCOKeypointAP(poses()[0]), poses()[1]),
        "detection AP": detections(),
        "PCKh": by_name(metrics.PCKh(), mpii()),
        "PCK": by_name(metrics.PCK(), boxes | {"sizes": corners[:, 2] - corners[:, 0]}),
        "errors": by_name(metrics.PixelError(), boxes),
        "NME": by_name(metrics.NME("size"), faces("aflw") | {"ids": torch.arange(50)}),
        "segmentation": by_name(metrics.ConfusionMatrix(7), {"predictions": logits, "labels": labels}),
        "classification": by_name(metrics.TopKAccuracy(), {"logits": first, "labels": of}),
    }


def parts_of(metric: metrics.Metric, update: Update) -> tuple[metrics.Metric, list[metrics.Metric]]:
    """Return the metric of everything, and of three parts with one batch, none and two."""
    whole, parts = copy.deepcopy(metric), [copy.deepcopy(metric) for _ in range(3)]
    update(whole, slice(None))
    update(parts[0], slice(0, 3))
    update(parts[2], slice(3, 4))
    update(parts[2], slice(4, None))
    return whole, parts


@pytest.mark.parametrize("name", cases())
def test_merged_metrics_are_the_whole(name: str) -> None:
    whole, parts = parts_of(*cases()[name])
    figures = whole.compute()
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].compute() == pytest.approx(figures, rel=1e-14)
    alone = whole.gather()  # without a process group: a copy
    whole.reset()
    assert alone.compute() == figures
    update = cases()[name][1]
    with torch.inference_mode():
        update(whole, slice(0, 4))
    update(whole, slice(4, None))
    assert whole.compute() == pytest.approx(figures, rel=1e-14)


def test_a_batch_that_is_overwritten_later_keeps_its_values() -> None:
    """As outputs of a CUDA graph are by the next replay."""
    annotations, made = poses()
    metric = metrics.COCOKeypointAP(annotations)
    metric.update(**made)
    before = metric.compute()
    for value in made.values():
        value.zero_()
    assert metric.compute() == before


PROGRAM = """
import sys
from datetime import timedelta
from torch import distributed
sys.path[:0] = sys.argv[3:]
from test_parts import cases, parts_of

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
for name, case in cases().items():
    whole, parts = parts_of(*case)
    mine, expected = parts[2 * rank], whole.compute()
    together = mine.gather()
    found = together.compute()
    assert all(abs(found[key] - value) < 1e-13 for key, value in expected.items()), (name, found, expected)
    assert together is not mine and (name in ("keypoint AP", "detection AP") or mine.compute() != found), name
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_gather_the_whole(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store"), *paths],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
