"""``evaluate_detection``: COCO's average precision of boxes and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hrnet_fast.datasets import DetectionDataset, collate_detection
from hrnet_fast.detection import Detections, DetectorConfig
from hrnet_fast.detection.boxes import box_iou
from hrnet_fast.detection.coco_results import coco_results
from hrnet_fast.errors import InputError, shown
from hrnet_fast.evaluation.batches import EvaluationBatches, Progress, check_network, gathered, make_metric, total_of
from hrnet_fast.evaluation.result import EvaluationResult, SampleResult
from hrnet_fast.metrics import COCODetectionAP
from hrnet_fast.metrics.coco_ap import BOX_FIGURES
from hrnet_fast.recipes.sections import EvaluationRecipe

WHAT = "evaluate_detection"
SHOWN = 0.5  # least score of a detection in a picture's own figure and in drawings
_FOUND = 0.5  # least IoU of a detection with its object, in that figure
Detect = Callable[[list[Tensor]], Sequence[Detections]]


def evaluate_detection(
    network: Detect,
    dataset: DetectionDataset,
    evaluation: EvaluationRecipe,
    device: torch.device | str,
    *,
    workers: int = 0,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate a detector by COCO's protocol, with faster-coco-eval or pycocotools.

    With an initialised process group each process evaluates a part, and all return the figures of the whole. Figures
    are those of :class:`~hrnet_fast.metrics.COCODetectionAP` and ``AP/<class>``; of masks the same ones as ``mask_AP``,
    ``mask_AP/<class>`` and so on. A picture's own figure is the F1 score of detections with a score of 0.5 or more:
    one counts as correct where its class and IoU (0.5 or more) fit an object that no better one has found. It is NaN
    for a picture with neither objects nor such detections. Higher is better. Objects of skipped pictures are not
    counted.

    Args:
        network: a :class:`~hrnet_fast.detection.Detector` in evaluation mode, or a function of its kind: RGB pictures
            [H, W, 3] to :class:`~hrnet_fast.detection.Detections`.
        dataset: the pictures.
        evaluation: the fields for detection.
        device: of the network; the detector itself moves the pictures there.
        workers: processes that decode pictures; 0 decodes in this one.
        batch_size: pictures for each call.
        progress: called with the samples done and their number, of this process's part.

    Raises:
        InputError: a setting does not fit the data or the network, or no sample is left.
        DatasetError: a picture is broken.
    """
    check_network(WHAT, network)
    metrics, classes = _metrics_of(dataset, evaluation), len(dataset.names)
    loader = EvaluationBatches(
        dataset, collate_detection, device, workers=workers, batch_size=batch_size, progress=progress
    )
    samples: list[SampleResult] = []
    evaluated: list[int] = []
    has_masks = False
    with torch.no_grad():
        for there, batch in loader:
            evaluated += there.image_ids
            boxes, labels = (torch.split(part, list(there.counts)) for part in (there.boxes, there.labels))
            for i, found in enumerate(network(batch.pictures())):
                if len(found) and int(found.labels.max()) >= classes:
                    given = f"a detection of class {int(found.labels.max())}, and data of {classes} classes"
                    raise InputError(f"{WHAT}: {given}; take a detector of the data's classes.")
                results = coco_results(found, dataset.categories, there.image_ids[i])
                has_masks |= found.masks is not None
                for kind, metric in metrics.items():
                    if kind == "bbox" or found.masks is not None:
                        metric.update(results)
                figure = picture_f1(found, boxes[i], labels[i])
                samples.append(SampleResult(there.paths[i], there.rows[i], figure, {"detections": results}))
    count, skipped, masks = total_of(len(samples), loader.skipped, has_masks)
    if not count:
        raise InputError(f"{WHAT}: no sample is left to evaluate, {skipped} were skipped.")
    if skipped:
        read = {image_id for part in gathered(evaluated) for image_id in part}
        for metric in metrics.values():
            metric.keep_images(read)
    figures: dict[str, float] = {}
    for kind, metric in metrics.items():
        if kind == "bbox" or masks:
            prefix = "" if kind == "bbox" else "mask_"
            figures |= {f"{prefix}{name}": v for name, v in metric.gather().compute_with_classes().items()}
    return EvaluationResult(figures, tuple(samples), count, skipped)


def check_detection_evaluation(
    dataset: DetectionDataset, config: DetectorConfig, evaluation: EvaluationRecipe
) -> set[str]:
    """Check the metric that an evaluation asks for before there is a network.

    Returns:
        The names of its figures; those of classes that are not annotated will be missing.

    Raises:
        InputError: as :func:`evaluate_detection`.
    """
    metrics = _metrics_of(dataset, evaluation)
    names = {*BOX_FIGURES, *(f"AP/{name}" for name in dataset.names)}
    has_masks = "segm" in metrics and config.roi is not None and config.roi.mask is not None
    return names | ({f"mask_{name}" for name in names} if has_masks else set())


def _metrics_of(dataset: DetectionDataset, evaluation: EvaluationRecipe) -> dict[str, COCODetectionAP]:
    """Return a metric of boxes, and one of masks where the annotations have them."""
    if evaluation.metric != "detection_ap":
        raise InputError(f"{WHAT}: metric={shown(evaluation.metric)}; accepted is 'detection_ap'.")
    truth = dataset.ground_truth()
    masks = truth["annotations"] and all("segmentation" in one for one in truth["annotations"])
    kinds = ("bbox", "segm") if masks else ("bbox",)
    options = evaluation.metric_options
    return {kind: make_metric(COCODetectionAP, truth, kind, options=options) for kind in kinds}


def picture_f1(found: Detections, boxes: Tensor, labels: Tensor) -> float:
    """Return the F1 score of one picture's detections; see :func:`evaluate_detection`.

    Args:
        found: best first.
        boxes, labels: of its objects, [M, 4] and [M].
    """
    kept = found.scores >= SHOWN
    given, classes = found.boxes[kept].cpu().float(), found.labels[kept].cpu()
    if not len(given) + len(boxes):
        return math.nan
    overlaps = box_iou(given, boxes) * (classes[:, None] == labels)
    correct = 0
    for row in overlaps if len(boxes) else ():
        best = int(row.argmax())
        if row[best] >= _FOUND:
            correct += 1
            overlaps[:, best] = 0
    return 2 * correct / (len(given) + len(boxes))
