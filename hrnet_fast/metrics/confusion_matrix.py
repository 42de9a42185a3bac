"""Segmentation by the confusion matrix of pixels: mIoU, mean and pixel accuracy, IoU of each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_integer, check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.metrics.metric import Metric

_ABSENT = ("zero", "skip")


class ConfusionMatrix(Metric):
    """Pixels by labelled and predicted class, and the figures of segmentation.

    The authors' segmentation repository, ``lib/utils/utils.py::get_confusion_matrix`` and
    ``lib/core/function.py::testval``: ``compute`` returns

    - ``miou``: mean over classes of TP / (TP + FP + FN);
    - ``mean_accuracy``: mean over classes of TP / (TP + FN);
    - ``pixel_accuracy``: TP of all classes / labelled pixels;

    from 0 to 1, NaN without a labelled pixel. Their figures are of all images together, not means over images.

    Args:
        classes: number of classes.
        ignore_label: pixels with this label do not count; 255, and -1 in the authors' PASCAL-Context.
        absent: a class that is neither labelled nor predicted has IoU 0 with ``"zero"``, as in the authors' code, and
            does not count in the means with ``"skip"``, as in mmsegmentation. For the mean accuracy it is a class that
            is not labelled.
        names: of the classes, for :meth:`per_class`; None: their indices.

    Raises:
        InputError: an argument is invalid.
    """

    def __init__(
        self, classes: int, ignore_label: int = 255, *, absent: str = "zero", names: Sequence[str] | None = None
    ) -> None:
        check_integer("ConfusionMatrix", "classes", classes)
        check_integer("ConfusionMatrix", "ignore_label", ignore_label, least=-(2**31))
        if absent not in _ABSENT:
            raise InputError(f"ConfusionMatrix: absent={shown(absent)} given; accepted are 'zero' and 'skip'.")
        if names is not None and len(names) != classes:
            raise InputError(f"ConfusionMatrix: {len(names)} names given for {classes} classes.")
        super().__init__(classes, ignore_label, absent)
        self.classes, self.ignore_label, self.absent = classes, ignore_label, absent
        self.names = tuple(map(str, range(classes))) if names is None else tuple(names)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add the pixels of a batch.

        Args:
            predictions: logits or probabilities [N, classes, H, W], of which the largest counts, the first of equal
                ones; or integer classes [N, H, W].
            labels: integers [N, H, W], classes or `ignore_label`.

        Raises:
            InputError: a type or shape is unsupported, such as logits that are not upsampled to the labels' size.
        """
        check_tensor("ConfusionMatrix.update", "predictions", predictions)
        check_tensor("ConfusionMatrix.update", "labels", labels)
        classes = predictions
        if predictions.dim() == 4 and predictions.shape[1] == self.classes:
            classes = predictions.max(1).indices
        kinds = [tensor.is_floating_point() or tensor.is_complex() for tensor in (classes, labels)]
        if labels.dim() != 3 or classes.shape != labels.shape or any(kinds):
            raise InputError(
                f"ConfusionMatrix: predictions {predictions.dtype} {list(predictions.shape)} and labels {labels.dtype} "
                f"{list(labels.shape)} given; accepted are [N, {self.classes}, H, W] or integers [N, H, W], and "
                "integers [N, H, W]. Upsample logits to the labels' size."
            )
        # The bins after the matrix count ignored pixels and classes out of range: no size depends on values.
        count, classes = self.classes, classes.long()
        labels = labels.to(classes.device, torch.int64)
        known = (labels >= 0) & (labels < count) & (classes >= 0) & (classes < count)
        place = torch.where(known, labels * count + classes, count * count + 1)
        place = torch.where(labels == self.ignore_label, count * count, place).flatten()
        bins = torch.zeros(count * count + 2, dtype=torch.int64, device=place.device)
        self._add("pixels", bins.index_add_(0, place, torch.ones_like(place)))

    def matrix(self) -> Tensor:
        """Return the pixels as int64 [classes, classes]: rows are labels, columns predictions.

        Raises:
            InputError: there was no batch, or a pixel has a class out of range.
        """
        self._require_batches()
        pixels = self._totals["pixels"].cpu()
        if pixels[-1]:
            raise InputError(
                f"ConfusionMatrix: {int(pixels[-1])} pixels have a label or prediction out of range; accepted are 0 to "
                f"{self.classes - 1} and the ignored label {self.ignore_label}."
            )
        return pixels[:-2].view(self.classes, self.classes)

    def compute(self) -> dict[str, float]:
        """Return ``miou``, ``mean_accuracy`` and ``pixel_accuracy``."""
        matrix = self.matrix().double()
        true, labelled, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        return {
            "miou": self._mean(true, labelled + predicted - true),
            "mean_accuracy": self._mean(true, labelled),
            "pixel_accuracy": (true.sum() / labelled.sum()).item(),
        }

    def per_class(self) -> dict[str, float]:
        """Return the IoU of each class by name; NaN for a class that is neither labelled nor predicted."""
        matrix = self.matrix().double()
        union = matrix.sum(1) + matrix.sum(0) - matrix.diag()
        return dict(zip(self.names, (matrix.diag() / union).tolist(), strict=True))

    def _mean(self, true: Tensor, counted: Tensor) -> float:
        if not counted.any():
            return float("nan")
        if self.absent == "skip":
            true, counted = true[counted > 0], counted[counted > 0]
        return (true / counted.clamp(min=1)).mean().item()
