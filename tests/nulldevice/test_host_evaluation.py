"""Evaluation on CUDA, its host side: however many batches there are, the host waits for the device at the end alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import device_counters
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hrnet_fast import datasets
from hrnet_fast.evaluation import evaluate_classification, evaluate_keypoints, evaluate_segmentation
from hrnet_fast.recipes import EvaluationRecipe

pytestmark = pytest.mark.nulldevice
MOUSE = Path(__file__).parents[1] / "data" / "mouse" / "CollectedData.csv"


def waits(evaluate: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often the host waits, or copies to itself, in one evaluation. No value on a device is computed."""
    monkeypatch.setattr("hrnet_fast.metrics.confusion_matrix.ConfusionMatrix.matrix", lambda self: torch.eye(3))
    with device_counters.counting() as n:
        result = evaluate(batch_size)
    assert n.errors == 0
    assert result.count == 3
    return int(n.synchronizations + n.to_host)


def keypoints(batch_size: int) -> Any:
    dataset = datasets.deeplabcut(MOUSE, flip_pairs=())
    crops = datasets.KeypointCrops((32, 32), (8, 8))
    network = nn.Conv2d(3, 17, 4, stride=4).cuda().eval()
    recipe = EvaluationRecipe("pck", flip=True)
    return evaluate_keypoints(network, dataset, crops, recipe, "cuda", batch_size=batch_size)


def pixels(folder: Path, batch_size: int) -> Any:
    for name, mode in (("pictures", "RGB"), ("masks", "L")):
        (folder / name).mkdir(exist_ok=True)
        for i in range(3):
            Image.new(mode, (40, 24)).save(folder / name / f"{i}.png")
    dataset = datasets.mask_folders(folder / "pictures", folder / "masks", 3)
    network = nn.Conv2d(3, 3, 4, stride=4).cuda().eval()
    recipe = EvaluationRecipe("miou", flip=True, scales=(1.0, 1.5), window=(24, 32), average="exp")
    return evaluate_segmentation(network, dataset, datasets.SegmentationCrops(), recipe, "cuda", batch_size=batch_size)


def classes(folder: Path, batch_size: int) -> Any:
    for i in range(3):
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    dataset = datasets.ClassificationDataset([(str(folder / f"{i}.png"), i) for i in range(3)], range(3))
    network = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()).cuda().eval()
    crops, recipe = datasets.ClassificationCrops(), EvaluationRecipe("top_k")
    return evaluate_classification(network, dataset, crops, recipe, "cuda", batch_size=batch_size)


@pytest.mark.parametrize("task", ["keypoints", "pixels", "classes"])
def test_waits_do_not_grow_with_batches(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(batch_size: int) -> Any:
        return keypoints(batch_size) if task == "keypoints" else globals()[task](tmp_path, batch_size)

    evaluate(3)  # the first call prepares libraries
    assert waits(evaluate, 1, monkeypatch) == waits(evaluate, 3, monkeypatch)
