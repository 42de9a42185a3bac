"""Classification: accuracy of the first k classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.metrics.metric import Metric


class TopKAccuracy(Metric):
    """Share of images whose class is among the k with the largest logits.

    The authors' classification repository, ``lib/core/evaluate.py::accuracy``, which has percent. ``compute`` returns
    ``top1`` and ``top5`` from 0 to 1.

    Args:
        ks: numbers of classes.

    Raises:
        InputError: `ks` are no positive integers.
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        if not isinstance(ks, Sequence) or not ks or any(type(k) is not int or k < 1 for k in ks):
            raise InputError(
                f"TopKAccuracy: ks={shown(ks)} given; accepted are integers of at least 1, such as (1, 5)."
            )
        self.ks = tuple(ks)
        super().__init__(self.ks)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: [N, classes].
            labels: integer classes [N]. One out of range is never among the first k.

        Raises:
            InputError: a type or shape is unsupported, or there are fewer classes than k.
        """
        check_tensor("TopKAccuracy.update", "logits", logits)
        check_tensor("TopKAccuracy.update", "labels", labels)
        if logits.dim() != 2 or labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise InputError(
                f"TopKAccuracy: logits {list(logits.shape)} and labels {labels.dtype} {list(labels.shape)} given; "
                "accepted are [N, classes] and integers [N]."
            )
        if logits.shape[1] < max(self.ks):
            raise InputError(
                f"TopKAccuracy: {logits.shape[1]} classes for top-{max(self.ks)}; give ks= of at most that number, as "
                "ks=(1,)."
            )
        first = logits.topk(max(self.ks), dim=1).indices == labels.to(logits.device).unsqueeze(1)
        hits = torch.stack([first[:, :k].sum() for k in self.ks])
        self._add("hits", hits)
        self._add("images", torch.full((), len(labels), dtype=torch.int64, device=logits.device))

    def compute(self) -> dict[str, float]:
        """Return ``top<k>`` for every k."""
        self._require_batches()
        hits, images = self._totals["hits"].cpu().double(), self._totals["images"].cpu()
        return {f"top{k}": value for k, value in zip(self.ks, (hits / images).tolist(), strict=True)}
