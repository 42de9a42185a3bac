"""``evaluate_keypoints``: crops, flip test, decoding and metrics of persons, faces and animals."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from hrnet_fast.datasets import KeypointCrops, KeypointDataset, collate_keypoints
from hrnet_fast.datasets.image_warps import compiled_crops
from hrnet_fast.errors import InputError
from hrnet_fast.evaluation.batches import (
    EvaluationBatches,
    Network,
    Progress,
    check_network,
    last_output,
    total_of,
)
from hrnet_fast.evaluation.keypoint_metrics import WHAT, KeypointPredictions, metric_of
from hrnet_fast.evaluation.result import EvaluationResult, SampleResult
from hrnet_fast.inference import flip_test
from hrnet_fast.keypoints import METHODS, decode_keypoints, needs_shift, to_image
from hrnet_fast.keypoints.methods import check_method, named_method
from hrnet_fast.metrics.coco_ap import KEYPOINT_FIGURES, COCOKeypointAP
from hrnet_fast.recipes.sections import EvaluationRecipe


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
    fill = metric_of(evaluation)
    in_workers = torch.device(device).type == "cpu" or compiled_crops()
    collate = crops.evaluating().collate if in_workers else collate_keypoints
    loader = EvaluationBatches(dataset, collate, device, workers=workers, batch_size=batch_size, progress=progress)
    found = _predict(network, loader, dataset, crops, evaluation)
    count, skipped = total_of(len(found.paths), loader.skipped)
    if not count:
        raise InputError(f"{WHAT}: no sample is left to evaluate, {skipped} were skipped.")
    metrics, own = fill(found, dataset, evaluation)
    figures: dict[str, float] = {}
    for metric in metrics:
        figures |= metric.gather().compute()
    shape = found.points.shape[:2]
    rows = torch.cat([found.points, found.scores.reshape(*shape, 1)], dim=2).tolist()
    samples = tuple(
        SampleResult(path, row, figure, {"points": [p[:2] for p in pose], "scores": [p[2] for p in pose], "box": box})
        for path, row, figure, pose, box in zip(
            found.paths, found.rows, own.tolist(), rows, found.boxes.tolist(), strict=True
        )
    )
    return EvaluationResult(figures, samples, count, skipped)


def check_keypoint_evaluation(dataset: KeypointDataset, crops: KeypointCrops, evaluation: EvaluationRecipe) -> set[str]:
    """Check what an evaluation asks for before there is a network: the decoding method, the metric, its files.

    Returns:
        The names of its figures.

    Raises:
        InputError: as :func:`evaluate_keypoints` would behind the last sample.
    """
    decoding_method(None, crops, evaluation)
    keypoints = len(dataset.names)
    points = torch.arange(1.0, 2 * keypoints + 1).view(1, keypoints, 2)
    seen, box, one = torch.ones(1, keypoints), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
    pose = KeypointPredictions(
        points, seen, points, seen, box, one, torch.zeros(1, dtype=torch.int64), one, one, ("",), ("row 0",)
    )
    names: set[str] = set()
    for metric in metric_of(evaluation)(pose, dataset, evaluation)[0]:
        names.update(KEYPOINT_FIGURES if isinstance(metric, COCOKeypointAP) else metric.compute())
    return names


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


def decoding_method(network: Network | None, crops: KeypointCrops, evaluation: EvaluationRecipe) -> str:
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
