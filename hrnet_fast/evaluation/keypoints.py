"""``evaluate_keypoints``: crops, flip test, decoding and metrics of persons, faces and animals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from hrnet_fast.datasets import KeypointCrops, KeypointDataset, collate_keypoints
from hrnet_fast.errors import InputError, shown
from hrnet_fast.evaluation.batches import (
    EvaluationBatches,
    Network,
    Progress,
    check_network,
    last_output,
    make_metric,
    total_of,
)
from hrnet_fast.evaluation.result import EvaluationResult, SampleResult
from hrnet_fast.inference import flip_test
from hrnet_fast.keypoints import METHODS, decode_keypoints, keypoint_set_of, needs_shift, to_image
from hrnet_fast.keypoints.methods import check_method, named_method
from hrnet_fast.metrics import NME, PCK, COCOKeypointAP, PCKh, PixelError
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


def evaluate_keypoints(
    network: Network,
    dataset: KeypointDataset,
    crops: KeypointCrops,
    evaluation: EvaluationRecipe,
    device: torch.device | str,
    *,
    workers: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate a network that predicts heatmaps.

    The authors' pose ``lib/core/function.py::validate`` and ``lib/dataset``: boxes are cropped, heatmaps are averaged
    with those of the mirrored crop, decoded and mapped to the picture. Their face code's ``inference`` is the same
    without mirroring. With an initialised process group each process evaluates a part, and all return the figures of
    the whole.

    ``metric`` takes ``metric_options`` beside the arguments of the metric's class:

    - ``"coco"``: :class:`~hrnet_fast.metrics.COCOKeypointAP`, by the file ``annotations`` or the data set's;
    - ``"pckh"``: :class:`~hrnet_fast.metrics.PCKh`, by the file ``head_boxes`` or ``gt_<split>.mat`` beside the
      annotations;
    - ``"pck"``: :class:`~hrnet_fast.metrics.PCK` and :class:`~hrnet_fast.metrics.PixelError`; with ``size="box"``, the
      default, thresholds are shares of the longer side of the sample's box, with ``"pixels"`` they are picture pixels;
    - ``"nme"``: :class:`~hrnet_fast.metrics.NME`.

    A sample's own figure is its NME for ``"nme"``, otherwise the mean distance of its visible points over the longer
    side of its box; NaN for detections. Lower is better.

    Args:
        network: model, accelerated model or engine in evaluation mode: [N, 3, H, W] to [N, K, h, w], or a list whose
            last item is that.
        dataset: the samples.
        crops: of the inputs; its augmentation is left out.
        evaluation: the fields for keypoints.
        device: of the network.
        workers: processes that decode pictures; 0 decodes in this one.
        batch_size: boxes for each call, which `flip` doubles.
        progress: called with the samples done and their number, of this process's part.

    Raises:
        InputError: a setting does not fit the data or the network, or no sample is left.
        DatasetError: a picture is broken.
    """
    check_network(WHAT, network)
    compute = _METRICS.get(evaluation.metric)
    if compute is None:
        raise InputError(f"{WHAT}: metric={shown(evaluation.metric)}; accepted are {', '.join(_METRICS)}.")
    loader = EvaluationBatches(
        dataset, collate_keypoints, device, workers=workers, batch_size=batch_size, progress=progress
    )
    found = _predict(network, loader, dataset, crops, evaluation)
    count, skipped = total_of(len(found.paths), loader.skipped)
    if not count:
        raise InputError(f"{WHAT}: no sample is left to evaluate, {skipped} were skipped.")
    figures, own = compute(found, dataset, evaluation)
    shape = found.points.shape[:2]
    rows = torch.cat([found.points, found.scores.reshape(*shape, 1)], dim=2).tolist()
    samples = tuple(
        SampleResult(path, row, figure, {"points": [p[:2] for p in pose], "scores": [p[2] for p in pose], "box": box})
        for path, row, figure, pose, box in zip(
            found.paths, found.rows, own.tolist(), rows, found.boxes.tolist(), strict=True
        )
    )
    return EvaluationResult(figures, samples, count, skipped)


def _predict(
    network: Network,
    loader: EvaluationBatches,
    dataset: KeypointDataset,
    crops: KeypointCrops,
    evaluation: EvaluationRecipe,
) -> KeypointPredictions:
    method = decoding_method(network, crops, evaluation)
    shift = needs_shift(method) if evaluation.shift is None else evaluation.shift
    pairs = crops.flip_pairs if crops.flip_pairs is not None else dataset.flip_pairs
    if evaluation.flip and pairs is None:
        raise InputError(
            f"{WHAT}: evaluation.flip is set and the pairs of keypoints that mirroring swaps are not known; give "
            "flip_pairs (() for none), or leave flip out."
        )
    made = crops.evaluating()

    def heatmaps(x: Tensor) -> Tensor:
        return last_output(WHAT, network(x), 4)

    columns: list[tuple[Tensor, ...]] = []
    names: list[tuple[str, str]] = []
    with torch.no_grad():
        for there, batch in loader:
            inputs = made(batch)
            if evaluation.flip:
                maps = flip_test(heatmaps, inputs.images, pairs or (), shift=shift)
            else:
                maps = heatmaps(inputs.images)
            if maps.shape[1] != len(dataset.names):
                given = f"the network has {maps.shape[1]} heatmaps and the data {len(dataset.names)} keypoints"
                raise InputError(f"{WHAT}: {given}; take a network of these keypoints.")
            points, scores = decode_keypoints(maps, made.input_size, method)
            points = to_image(points, inputs.boxes, made.input_size)
            if evaluation.whole_pixels:
                points = points.trunc() + 1
            areas = inputs.boxes[:, 2].to(scores) * inputs.boxes[:, 3].to(scores)
            annotated = (there.points, there.visible, there.boxes)
            columns.append((points, scores, *annotated, areas, there.image_ids, there.scores, there.box_sizes))
            names += zip(batch.paths, batch.rows, strict=True)
    tensors = [torch.cat(column).cpu() for column in zip(*columns, strict=True)] or _no_poses(len(dataset.names))
    named = dict(zip((f.name for f in fields(KeypointPredictions)), tensors, strict=False))
    return KeypointPredictions(**named, paths=tuple(n[0] for n in names), rows=tuple(n[1] for n in names))


def _no_poses(keypoints: int) -> list[Tensor]:
    shapes: list[tuple[int, ...]] = [(0, keypoints, 2), (0, keypoints), (0, keypoints, 2), (0, keypoints), (0, 4)]
    missing = len(fields(KeypointPredictions)) - 2 - len(shapes)
    return [torch.zeros(shape) for shape in shapes + [(0,)] * missing]


def decoding_method(network: Network, crops: KeypointCrops, evaluation: EvaluationRecipe) -> str:
    """Return the method of decoding: the recipe's, else the network's, else the crops'.

    Raises:
        InputError: crops and method belong to different conventions of coordinates.
    """
    named = named_method(network)
    method = evaluation.decode or (named if named in METHODS else crops.method)
    check_method(f"{WHAT}: decode", method)
    if _convention(method) != _convention(crops.method):
        source = "evaluation.decode" if evaluation.decode else "the network"
        raise InputError(
            f"{WHAT}: {source} asks for {method!r} and crops are made by {crops.method!r}, whose pixels lie elsewhere; "
            "give evaluation.decode and inputs.method of one convention."
        )
    return method


def _convention(method: str) -> str:
    return "msra" if method == "dark" else method


def _distances(found: KeypointPredictions) -> Tensor:
    """Return the mean distance of each sample's visible points over the longer side of its box, [N] in float64."""
    seen = found.visible > 0
    apart = torch.where(seen, (found.points.double() - found.targets.double()).norm(dim=2), 0)
    return apart.sum(1) / seen.sum(1) / found.boxes[:, 2:].amax(1).double()


def _coco(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[dict[str, float], Tensor]:
    options = {"category_id": dataset.category_id, **evaluation.metric_options}
    annotations = options.pop("annotations", dataset.annotations)
    if not annotations:
        raise InputError(
            f"{WHAT}: metric='coco' needs annotations in COCO's format, and this data set has none; take 'pck'."
        )
    metric = make_metric(COCOKeypointAP, annotations, options=options)
    if len(found.paths):
        metric.update(found.points, found.scores, found.image_ids, found.areas, found.box_scores)
    return metric.gather().compute(), _distances(found)


def _pckh(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[dict[str, float], Tensor]:
    options = dict(evaluation.metric_options)
    annotations = Path(dataset.annotations)
    file = Path(options.pop("head_boxes", annotations.with_name(f"gt_{annotations.stem}.mat")))
    metric = make_metric(PCKh, options=options)
    targets, counted, heads = _mpii_truth(file)
    rows = [int(row.removeprefix("row ")) for row in found.rows]
    if rows and max(rows) >= len(targets):
        raise InputError(f"{WHAT}: {file} has {len(targets)} persons, none for row {max(rows)}; give the split's.")
    if rows:
        metric.update(found.points + 1, targets[rows], counted[rows], heads[rows])  # its points count from 1
    return metric.gather().compute(), _distances(found)


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
) -> tuple[dict[str, float], Tensor]:
    options = dict(evaluation.metric_options)
    size = options.pop("size", "box")
    if size not in ("box", "pixels"):
        raise InputError(f"{WHAT}: metric_options.size={shown(size)}; accepted are 'box' and 'pixels'.")
    shares, pixels = make_metric(PCK, options=options), PixelError()
    if len(found.paths):
        sides = found.boxes[:, 2:].amax(1) if size == "box" else None
        shares.update(found.points, found.targets, found.visible, sides)
        pixels.update(found.points, found.targets, found.visible)
    return shares.gather().compute() | pixels.gather().compute(), _distances(found)


def _nme(
    found: KeypointPredictions, dataset: KeypointDataset, evaluation: EvaluationRecipe
) -> tuple[dict[str, float], Tensor]:
    metric = make_metric(NME, options=evaluation.metric_options)
    known = keypoint_set_of(len(dataset.names))
    aflw = known is not None and known.name == "aflw"
    by_size = metric.landmarks == "size" or (metric.landmarks is None and aflw)
    own = torch.zeros(0, dtype=torch.float64)
    if len(found.paths):
        metric.update(found.points, found.targets, found.box_sizes if by_size else None)
        own = torch.tensor(list(metric.per_image().values()), dtype=torch.float64)
    return metric.gather().compute(), own


_METRICS: dict[
    str, Callable[[KeypointPredictions, KeypointDataset, EvaluationRecipe], tuple[dict[str, float], Tensor]]
] = {"coco": _coco, "pckh": _pckh, "pck": _pck, "nme": _nme}
