"""Metrics of predicted keypoints: COCO's AP, MPII's PCKh, PCK and errors in pixels, NME."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hrnet_fast.datasets import KeypointDataset
from hrnet_fast.errors import InputError, shown
from hrnet_fast.evaluation.batches import make_metric
from hrnet_fast.keypoints import keypoint_set_of
from hrnet_fast.metrics import NME, PCK, COCOKeypointAP, PCKh, PixelError
from hrnet_fast.metrics.metric import Metric
from hrnet_fast.recipes.sections import EvaluationRecipe

WHAT = "evaluate_keypoints"


@dataclass(frozen=True)
class KeypointPredictions:
    """N predicted poses beside their annotations, on the host.

    Attributes:
        points, scores: [N, K, 2] in picture pixels and [N, K], as decoded.
        targets, visible: [N, K, 2] and [N, K] of the annotations.
        boxes: [N, 4], annotated or detected.
        areas: [N] of the enlarged boxes, in square pixels.
        image_ids, box_scores, box_sizes: [N]; see :class:`~hrnet_fast.datasets.KeypointSample`.
        paths, rows: of each sample.
    """

    points: Tensor
    scores: Tensor
    targets: Tensor
    visible: Tensor
    boxes: Tensor
    areas: Tensor
    image_ids: Tensor
    box_scores: Tensor
    box_sizes: Tensor
    paths: tuple[str, ...]
    rows: tuple[str, ...]


# Returns the metrics of predictions, filled, and each sample's own figure [N].
Fill = Callable[[KeypointPredictions, KeypointDataset, EvaluationRecipe], tuple[tuple[Metric, ...], Tensor]]


def _distances(found: KeypointPredictions) -> Tensor:
    """Return the mean distance of each sample's visible points over the longer side of its box, [N] in float64."""
    seen = found.visible > 0
    apart = torch.where(seen, (found.points.double() - found.targets.double()).norm(dim=2), 0)
    return apart.sum(1) / seen.sum(1) / found.boxes[:, 2:].amax(1).double()


def _coco(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[tuple[Metric, ...], Tensor]:
    options = {"category_id": dataset.category_id, **evaluation.metric_options}
    annotations = options.pop("annotations", dataset.annotations)
    if not annotations:
        raise InputError(
            f"{WHAT}: metric='coco' needs annotations in COCO's format, and this data set has none; take 'pck'."
        )
    metric = make_metric(COCOKeypointAP, annotations, options=options)
    if len(found.paths):
        metric.update(found.points, found.scores, found.image_ids, found.areas, found.box_scores)
    return (metric,), _distances(found)


def _pckh(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[tuple[Metric, ...], Tensor]:
    options = dict(evaluation.metric_options)
    given, annotations = options.pop("head_boxes", None), Path(dataset.annotations)
    if given is None and not annotations.name:
        raise InputError(f"{WHAT}: metric='pckh' needs metric_options.head_boxes, MPII's gt_valid.mat, with this data.")
    file = Path(given or annotations.with_name(f"gt_{annotations.stem}.mat"))
    metric = make_metric(PCKh, options=options)
    targets, counted, heads = _mpii_truth(file)
    rows = [int(row.removeprefix("row ")) for row in found.rows]
    if rows and max(rows) >= len(targets):
        raise InputError(f"{WHAT}: {file} has {len(targets)} persons, none for row {max(rows)}; give the split's.")
    if rows:
        metric.update(found.points + 1, targets[rows], counted[rows], heads[rows])  # its points count from 1
    return (metric,), _distances(found)


def _mpii_truth(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Return points [N, 16, 2] counted from 1, which of them count [N, 16], and head boxes [N, 4] of MPII.

    The authors' ``annot/gt_valid.mat`` (``lib/dataset/mpii.py::evaluate``).

    Raises:
        InputError: the file or scipy is missing, or it has other content.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(f"{WHAT}: metric='pckh' reads {path} with scipy: pip install scipy.") from error
    try:
        content = loadmat(path)
        points, missing, heads = (
            torch.from_numpy(content[name].astype("float64")) for name in ("pos_gt_src", "jnt_missing", "headboxes_src")
        )
    except (OSError, KeyError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"{WHAT}: {path} cannot be read ({error}); metric='pckh' needs the authors' file of head boxes, or take "
            "'pck'."
        ) from error
    return points.permute(2, 0, 1), 1 - missing.T, heads.permute(2, 0, 1).reshape(-1, 4)


def _pck(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[tuple[Metric, ...], Tensor]:
    options = dict(evaluation.metric_options)
    size = options.pop("size", "box")
    if size not in ("box", "pixels"):
        raise InputError(f"{WHAT}: metric_options.size={shown(size)}; accepted are 'box' and 'pixels'.")
    shares, pixels = make_metric(PCK, options=options), PixelError()
    if len(found.paths):
        sides = found.boxes[:, 2:].amax(1) if size == "box" else None
        shares.update(found.points, found.targets, found.visible, sides)
        pixels.update(found.points, found.targets, found.visible)
    return (shares, pixels), _distances(found)


def _nme(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[tuple[Metric, ...], Tensor]:
    metric = make_metric(NME, options=evaluation.metric_options)
    known = keypoint_set_of(len(dataset.names))
    aflw = known is not None and known.name == "aflw"
    by_size = metric.landmarks == "size" or (metric.landmarks is None and aflw)
    own = torch.zeros(0, dtype=torch.float64)
    if len(found.paths):
        metric.update(found.points, found.targets, found.box_sizes if by_size else None)
        own = torch.tensor(list(metric.per_image().values()), dtype=torch.float64)
    return (metric,), own


_METRICS: dict[str, Fill] = {"coco": _coco, "pckh": _pckh, "pck": _pck, "nme": _nme}


def metric_of(evaluation: EvaluationRecipe) -> Fill:
    """Return what fills the metric of an evaluation.

    Raises:
        InputError: the metric is none of keypoints.
    """
    fill = _METRICS.get(evaluation.metric)
    if fill is None:
        raise InputError(f"{WHAT}: metric={shown(evaluation.metric)}; accepted are {', '.join(_METRICS)}.")
    return fill
