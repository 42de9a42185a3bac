"""``evaluate_classification``: accuracy of the first classes."""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.datasets import ClassificationCrops, ClassificationDataset, collate_classification
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
from hrnet_fast.metrics import TopKAccuracy
from hrnet_fast.recipes.sections import EvaluationRecipe

WHAT = "evaluate_classification"


def evaluate_classification(
    network: Network,
    dataset: ClassificationDataset,
    crops: ClassificationCrops,
    evaluation: EvaluationRecipe,
    device: torch.device | str,
    *,
    workers: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate a network that predicts a class for every picture.

    The authors' classification ``lib/core/function.py::validate``. With an initialised process group each process
    evaluates a part, and all return the figures of the whole. Figures are those of
    :class:`~hrnet_fast.metrics.TopKAccuracy`, of the first class alone where there are fewer than five. A sample's own
    figure is the probability of its class; higher is better.

    Args:
        network: model, accelerated model or engine in evaluation mode: [N, 3, H, W] to logits [N, classes].
        dataset: the samples; its transform is that of evaluation.
        crops: makes the inputs of a batch; random colours are left out.
        evaluation: the fields for classification; `flip` takes the mean with the mirrored picture's logits.
        device: of the network.
        workers: processes that decode pictures; 0 decodes in this one.
        batch_size: pictures for each call.
        progress: called with the samples done and their number, of this process's part.

    Raises:
        InputError: a setting does not fit the network, or no sample is left.
        DatasetError: a picture is broken.
    """
    check_network(WHAT, network)
    metric = _metric_of(dataset, evaluation)
    loader = EvaluationBatches(
        dataset, collate_classification, device, workers=workers, batch_size=batch_size, progress=progress
    )  # fmt: skip
    classes, made = dataset.num_classes, crops.evaluating()
    columns: list[tuple[Tensor, ...]] = []
    names: list[tuple[str, str]] = []
    with torch.no_grad():
        for _, batch in loader:
            images, labels = made(batch), batch.labels
            logits = last_output(WHAT, network(images), 2)
            if evaluation.flip:
                logits = (logits + last_output(WHAT, network(images.flip(3)), 2)) / 2
            if logits.shape[1] != classes:
                given = f"the network has {logits.shape[1]} classes and the data {classes}"
                raise InputError(f"{WHAT}: {given}; take a network of these classes.")
            metric.update(logits, labels)
            shares = logits.float().softmax(1)
            best, first = shares.max(1)
            known = (labels >= 0) & (labels < classes)
            own = shares.gather(1, labels.clamp(0, classes - 1)[:, None])[:, 0]
            columns.append((labels, first, best, torch.where(known, own, 0)))
            names += zip(batch.paths, batch.rows, strict=True)
    count, skipped = total_of(len(names), loader.skipped)
    if not count:
        raise InputError(f"{WHAT}: no sample is left to evaluate, {skipped} were skipped.")
    whole = [torch.cat(column).tolist() for column in zip(*columns, strict=True)]
    samples = tuple(
        SampleResult(path, row, own, {"label": label, "class": found, "share": best})
        for (path, row), label, found, best, own in zip(names, *whole, strict=True)
    )
    return EvaluationResult(metric.gather().compute(), samples, count, skipped)


def check_classification_evaluation(dataset: ClassificationDataset, evaluation: EvaluationRecipe) -> set[str]:
    """Check the metric that an evaluation asks for before there is a network.

    Returns:
        The names of its figures.

    Raises:
        InputError: as :func:`evaluate_classification`.
    """
    metric = _metric_of(dataset, evaluation)
    metric.update(torch.zeros(1, dataset.num_classes), torch.zeros(1, dtype=torch.int64))
    return set(metric.compute())


def _metric_of(dataset: ClassificationDataset, evaluation: EvaluationRecipe) -> TopKAccuracy:
    if evaluation.metric != "top_k":
        raise InputError(f"{WHAT}: metric={shown(evaluation.metric)}; accepted is 'top_k'.")
    ks = (1, 5) if dataset.num_classes >= 5 else (1,)
    return make_metric(TopKAccuracy, options={"ks": ks, **evaluation.metric_options})
