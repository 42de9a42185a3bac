"""``evaluate_segmentation``: pictures of any size, scales, mirror images, windows and the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hrnet_fast.datasets import CollateSegmentation, SegmentationCrops, SegmentationDataset, normalize, resized_parts
from hrnet_fast.datasets.packed_images import PackedImages, channels_of, constant
from hrnet_fast.datasets.segmentation_batches import SegmentationBatch
from hrnet_fast.errors import InputError, shown
from hrnet_fast.evaluation.batches import EvaluationBatches, Network, Progress, check_network, make_metric, total_of
from hrnet_fast.evaluation.result import EvaluationResult, SampleResult
from hrnet_fast.evaluation.segmentation_passes import WHAT, SegmentationPasses
from hrnet_fast.metrics import ConfusionMatrix
from hrnet_fast.recipes.sections import EvaluationRecipe


def evaluate_segmentation(
    network: Network,
    dataset: SegmentationDataset,
    crops: SegmentationCrops,
    evaluation: EvaluationRecipe,
    device: torch.device | str,
    *,
    workers: int = 0,
    batch_size: int = 1,
    progress: Progress | None = None,
    align_corners: bool | None = None,
) -> EvaluationResult:
    """Evaluate a network that predicts a class for every pixel.

    The authors' segmentation ``lib/core/function.py::testval``: scores of all passes
    (:class:`~hrnet_fast.evaluation.segmentation_passes.SegmentationPasses`) are added up, upsampled to the mask, and
    the largest counts. With an initialised process group each process evaluates a part, and all return the figures of
    the whole.

    Figures are those of :class:`~hrnet_fast.metrics.ConfusionMatrix` and ``iou/<class>`` of each class that is labelled
    or predicted. A sample's own figure is its share of correct pixels, NaN where all are ignored. Higher is better.

    Args:
        network: model, accelerated model or engine in evaluation mode: [N, 3, H, W] to logits [N, classes, h, w], or
            several, whose last is the main one.
        dataset: the samples, with masks.
        crops: gives the normalisation.
        evaluation: the fields for segmentation.
        device: of the network.
        workers: processes that decode pictures; 0 decodes in this one.
        batch_size: pictures of one size, or windows, for each call, which `flip` doubles.
        progress: called with the samples done and their number, of this process's part.
        align_corners: of the upsampling of logits; None takes the network's ``config.align_corners``, True where it has
            none.

    Raises:
        InputError: a setting does not fit the data or the network, or no sample is left.
        DatasetError: a picture or mask is broken.
    """
    check_network(WHAT, network)
    metric = _metric_of(dataset, evaluation)
    scored = _ScoredBatches(network, dataset, crops, evaluation, batch_size, align_corners)
    collate = CollateSegmentation(dataset.ignore_label)
    loader = EvaluationBatches(dataset, collate, device, workers=workers, batch_size=batch_size, progress=progress)
    names: list[tuple[str, str]] = []
    correct: list[Tensor] = []
    with torch.no_grad():
        for there, batch in loader:
            if batch.labels is None:
                raise InputError(f"{WHAT}: {batch.paths[0]} has no mask; evaluation needs masks.")
            found: dict[int, Tensor] = {}
            for size, members, scores in scored(there, batch):
                labels = _stacked(batch.labels, there.labels, members, size)[:, 0]
                metric.update(scores, labels)
                counted = labels != dataset.ignore_label
                hits = (scores.max(1).indices == labels) & counted
                shares = hits.flatten(1).sum(1).double() / counted.flatten(1).sum(1)
                found |= zip(members, shares.unbind(), strict=True)
            correct += [found[i] for i in range(len(batch))]
            names += zip(batch.paths, batch.rows, strict=True)
    count, skipped = total_of(len(names), loader.skipped)
    if not count:
        raise InputError(f"{WHAT}: no sample is left to evaluate, {skipped} were skipped.")
    whole = metric.gather()
    figures = whole.compute() | {f"iou/{name}": iou for name, iou in whole.per_class().items() if not math.isnan(iou)}
    own = torch.stack(correct).tolist() if correct else []
    samples = tuple(SampleResult(path, row, share, {}) for (path, row), share in zip(names, own, strict=True))
    return EvaluationResult(figures, samples, count, skipped)


def check_segmentation_evaluation(dataset: SegmentationDataset, evaluation: EvaluationRecipe) -> set[str]:
    """Check the metric that an evaluation asks for before there is a network.

    Returns:
        The names of its figures; those of classes that do not occur will be missing.

    Raises:
        InputError: as :func:`evaluate_segmentation`.
    """
    classes = {f"iou/{name}" for name in _metric_of(dataset, evaluation).names}
    return {"miou", "mean_accuracy", "pixel_accuracy"} | classes


def _metric_of(dataset: SegmentationDataset, evaluation: EvaluationRecipe) -> ConfusionMatrix:
    if evaluation.metric != "miou":
        raise InputError(f"{WHAT}: metric={shown(evaluation.metric)}; accepted is 'miou'.")
    options = {"names": dataset.names or None, **evaluation.metric_options}
    return make_metric(ConfusionMatrix, dataset.num_classes, dataset.ignore_label, options=options)


def predict_classes(
    network: Network,
    dataset: SegmentationDataset,
    index: int,
    crops: SegmentationCrops,
    evaluation: EvaluationRecipe,
    device: torch.device | str,
    *,
    align_corners: bool | None = None,
) -> Tensor:
    """Return the class of each pixel of one sample, int64 [H, W] on the host, as :func:`evaluate_segmentation` has it.

    Raises:
        DatasetError: the picture or its mask is broken.
    """
    check_network(WHAT, network)
    scored = _ScoredBatches(network, dataset, crops, evaluation, 1, align_corners)
    there = CollateSegmentation(dataset.ignore_label)([dataset.read(index)])
    with torch.no_grad():
        (_, _, scores), *_ = scored(there, there.to(device))
    return scores[0].max(0).indices.cpu()


class _ScoredBatches:
    """Class scores of the pictures of a batch, by size."""

    def __init__(
        self,
        network: Network,
        dataset: SegmentationDataset,
        crops: SegmentationCrops,
        evaluation: EvaluationRecipe,
        batch_size: int,
        align_corners: bool | None,
    ) -> None:
        if align_corners is None:
            align_corners = bool(getattr(getattr(network, "config", None), "align_corners", True))
        self._network, self._crops, self._size = network, crops, evaluation.size
        self._passes = SegmentationPasses(
            scales=tuple(evaluation.scales),
            flip=evaluation.flip,
            base_size=evaluation.base_size,
            window=evaluation.window,
            stride=evaluation.stride,
            pad_windows=evaluation.pad_windows,
            average=evaluation.average,
            swapped=tuple(dataset.swapped_classes),
            black=tuple(-mean / std for mean, std in zip(crops.mean, crops.std, strict=True)),
            align_corners=align_corners,
            batch_size=batch_size,
        )

    def __call__(
        self, there: SegmentationBatch, batch: SegmentationBatch
    ) -> Iterator[tuple[tuple[int, int], list[int], Tensor]]:
        """Yield, for each size (H, W), the pictures of that size and their scores [N, classes, H, W].

        `there` is `batch` on the host.
        """
        resized = None if self._size is None else self._scores(_resized(_whole(batch), self._size))
        for size, members in _by_size(there).items():
            if resized is None:
                yield size, members, self._scores(_stacked(_whole(batch), _whole(there), members, size))
            else:
                yield size, members, self._passes.to_size(torch.stack([resized[i] for i in members]), size)

    def _scores(self, images: Tensor) -> Tensor:
        return self._passes(self._network, normalize(images, self._crops.mean, self._crops.std))


def _whole(batch: SegmentationBatch) -> PackedImages:
    """Return the pictures, which evaluation does not crop in workers."""
    assert isinstance(batch.images, PackedImages)
    return batch.images


def _by_size(batch: SegmentationBatch) -> dict[tuple[int, int], list[int]]:
    """Return the pictures of each size (H, W) of a batch on the host."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (height, width) in enumerate(batch.images.sizes.tolist()):
        groups.setdefault((height, width), []).append(i)
    return groups


def _stacked(packed: PackedImages, there: PackedImages, members: list[int], size: tuple[int, int]) -> Tensor:
    """Return pictures of one size as uint8 [N, 3, H, W], classes as [N, 1, H, W]; `there` is `packed` on the host."""
    starts, (height, width) = there.starts.tolist(), size
    pixels = torch.stack([packed.values[starts[i] : starts[i] + height * width] for i in members])
    return channels_of(pixels.view(len(members), height, width)).to(torch.uint8)


def _resized(packed: PackedImages, size: tuple[int, int]) -> Tensor:
    """Return all pictures resized to (H, W) as ``cv2.resize`` does, uint8 [N, 3, H, W]."""
    sizes = constant(size, packed.sizes).expand_as(packed.sizes)
    return resized_parts(packed, sizes, torch.zeros_like(sizes), size)
