"""The best and worst samples of an evaluation, drawn beside their annotations."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrnet_fast.datasets import DetectionDataset, KeypointDataset, SegmentationDataset
from hrnet_fast.datasets.reading import read_pixels
from hrnet_fast.detection import Detections
from hrnet_fast.evaluation import EvaluationResult, SampleResult
from hrnet_fast.evaluation.detection import SHOWN
from hrnet_fast.tasks import draw
from hrnet_fast.tasks.prediction import Options

WIDTH = 480  # of a drawn picture, in pixels
_MARGIN = 0.25  # of a box, on each side, around a cropped sample


@dataclass(frozen=True)
class Example:
    """One drawn sample.

    Attributes:
        kind: ``"best"`` or ``"worst"``.
        caption: file, row and figure.
        png: the picture.
    """

    kind: str
    caption: str
    png: bytes


def draw_examples(
    result: EvaluationResult,
    dataset: Any,
    *,
    lower_is_better: bool,
    classes: Callable[[int], Tensor] | None = None,
    names: tuple[str, ...] = (),
    count: int = 4,
) -> list[Example]:
    """Return the samples with the best and the worst figures of their own; those without a figure are left out.

    Args:
        result: of an evaluation.
        dataset: its data set.
        lower_is_better: the figures are errors.
        classes: the predicted class of each pixel, [H, W], of a sample's index, for segmentation.
        names: of the classes, for classification and detection.
        count: number of best and of worst samples.

    Raises:
        DatasetError: a picture is broken.
    """
    ranked = sorted((s for s in result.samples if not math.isnan(s.figure)), key=lambda s: s.figure)
    if not lower_is_better:
        ranked.reverse()
    half = min(count, len(ranked) // 2) or len(ranked)
    chosen = [("best", s) for s in ranked[:half]] + [("worst", s) for s in ranked[half:][::-1][:half]]
    places = _places(dataset, [s for _, s in chosen])
    examples = []
    for kind, sample in chosen:
        index = places[sample.path, sample.row]
        if isinstance(dataset, KeypointDataset):
            picture = _draw_keypoints(dataset, index, sample)
        elif isinstance(dataset, SegmentationDataset):
            picture = _draw_classes(dataset, index, classes)
        elif isinstance(dataset, DetectionDataset):
            picture = _draw_objects(dataset, index, sample)
        else:
            picture = _fitted(Image.fromarray(read_pixels(sample.path).numpy()))
        caption = " ".join(filter(None, (Path(sample.path).name, sample.row, _told(sample, names))))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        examples.append(Example(kind, caption, buffer.getvalue()))
    return examples


def legend(dataset: Any) -> str:
    """Return what the pictures and their figures are."""
    if isinstance(dataset, KeypointDataset):
        return (
            "Rings are annotated points, each with a line to the predicted one. The figure is the sample's error as a "
            "share of its size."
        )
    if isinstance(dataset, SegmentationDataset):
        return "The mask lies over the picture above, the prediction below. The figure is the share of correct pixels."
    if isinstance(dataset, DetectionDataset):
        return (
            f"Annotated objects above, detections with a score of {SHOWN} or more below. The figure is the F1 score of "
            "these detections at an IoU of 0.5."
        )
    return "The picture's class with its predicted probability, and the predicted class where it is another one."


def _told(sample: SampleResult, names: tuple[str, ...]) -> str:
    if "class" not in sample.answer:
        return f"{sample.figure:.3g}"
    label, found = (names[i] if i < len(names) else str(i) for i in (sample.answer["label"], sample.answer["class"]))
    share = f"{sample.answer['share']:.2f}"
    return f"{label}: {sample.figure:.2f}" if label == found else f"{label}: {sample.figure:.2f}, {found}: {share}"


def _places(dataset: Any, samples: list[SampleResult]) -> dict[tuple[str, str], int]:
    """Return the index of each sample in its data set, by file and row."""
    wanted = {(sample.path, sample.row) for sample in samples}
    rows = dict(wanted)
    found: dict[tuple[str, str], int] = {}
    for i in range(len(dataset)):
        path = dataset.picture(i)
        if path in rows:
            # A picture with several persons has several samples; of other data sets it is one.
            row = dataset.annotation(i).row if isinstance(dataset, KeypointDataset) else rows[path]
            found.setdefault((path, row), i)
    return found


def _draw_keypoints(dataset: KeypointDataset, index: int, sample: SampleResult) -> Image.Image:
    """Draw the part of the picture around the box, with predicted and annotated points."""
    image = Image.fromarray(read_pixels(sample.path).numpy())
    left, top, width, height = sample.answer["box"]
    corner = np.array([max(0, left - _MARGIN * width), max(0, top - _MARGIN * height)]).astype(int)
    end = np.array([min(image.width, left + (1 + _MARGIN) * width), min(image.height, top + (1 + _MARGIN) * height)])
    end = np.maximum(np.ceil(end).astype(int), corner + 1)
    image = image.crop((*corner.tolist(), *end.tolist()))
    scale = WIDTH / image.width
    image = _fitted(image)
    points = ((np.array(sample.answer["points"]) - corner) * scale).tolist()
    annotation = dataset.annotation(index)
    targets = ((annotation.points.numpy() - corner) * scale).tolist()
    options = replace(Options(), threshold=-math.inf)
    seen = [i for i, visible in enumerate(annotation.visible.tolist()) if visible > 0]
    picture = draw.errors(image, [points[i] for i in seen], [targets[i] for i in seen])
    return draw.keypoints(picture, [points], [sample.answer["scores"]], dataset.bones, options)


def _draw_classes(dataset: SegmentationDataset, index: int, classes: Callable[[int], Tensor] | None) -> Image.Image:
    """Draw the mask over the picture, and below it the prediction; ignored pixels are black."""
    sample = dataset.read(index)
    image = Image.fromarray(sample.image.contiguous().numpy())
    maps = [] if sample.labels is None else [sample.labels.numpy()]
    if classes is not None:
        maps.append(classes(index).numpy())
    drawn = []
    for labels in maps:
        known = labels < dataset.num_classes
        over = np.array(draw.overlay(image, np.where(known, labels, 0), dataset.num_classes))
        drawn.append(_fitted(Image.fromarray(np.where(known[..., None], over, 0).astype(np.uint8))))
    return _stacked(drawn)


def _draw_objects(dataset: DetectionDataset, index: int, sample: SampleResult) -> Image.Image:
    """Draw the annotated objects, and below them the detections."""
    image = Image.fromarray(read_pixels(sample.path).numpy())
    annotated = dataset.annotation(index)
    known = Detections(annotated.boxes, torch.ones(len(annotated.labels)), annotated.labels)
    entries = sample.answer["detections"]
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([dataset.categories.index(entry["category_id"]) for entry in entries], dtype=torch.int64)
    found = Detections(boxes, torch.tensor([entry["score"] for entry in entries]), labels)
    return _stacked([_fitted(draw.detections(image, one, dataset.names, SHOWN)) for one in (known, found)])


def _stacked(drawn: list[Image.Image]) -> Image.Image:
    """Return pictures of :data:`WIDTH` pixels one below the other."""
    both = Image.new("RGB", (WIDTH, sum(one.height for one in drawn) + 4 * (len(drawn) - 1)), (255, 255, 255))
    top = 0
    for one in drawn:
        both.paste(one, (0, top))
        top += one.height + 4
    return both


def _fitted(image: Image.Image) -> Image.Image:
    """Return the picture of :data:`WIDTH` pixels."""
    return image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.BILINEAR)
