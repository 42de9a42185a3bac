"""Keypoints: PCK by sizes or in pixels, MPII's PCKh, and errors in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_numbers, check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import KEYPOINT_SETS
from hrnet_fast.keypoints.methods import widest_float
from hrnet_fast.metrics.metric import Metric

_MEANS = ("keypoints", "points")
# A share of the head box's diagonal is MPII's head size (authors' ``lib/dataset/mpii.py``, ``SC_BIAS``).
HEAD_SHARE = 0.6
_MPII_GROUPS = {"head": ("head_top",)} | {
    name: (f"left_{name}", f"right_{name}") for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
}
_MPII_UNCOUNTED = ("pelvis", "thorax")


class PCK(Metric):
    """Percentage of correct keypoints: the share of visible keypoints closer to their target than a threshold.

    ``compute`` returns ``pck@t`` from 0 to 1 for each threshold t, NaN without a visible keypoint.

    Args:
        thresholds: shares of the sizes that ``update`` takes, such as those of boxes; pixels where it takes none.
        mean: over ``"keypoints"``, each the share of its own visible points, as in the authors' pose
            ``lib/core/evaluate.py::accuracy`` and mmpose's PCKAccuracy; or over all ``"points"``, as in MPII's.
        inclusive: whether a keypoint exactly at a threshold is correct, as in MPII's; not so in the other two.

    Raises:
        InputError: an argument is invalid.
    """

    def __init__(
        self, thresholds: Sequence[float] = (0.05, 0.1, 0.2), *, mean: str = "keypoints", inclusive: bool = False
    ) -> None:
        what = type(self).__name__
        self.thresholds = check_numbers(what, "thresholds", thresholds, "positive numbers")
        if min(self.thresholds) <= 0:
            raise InputError(f"{what}: thresholds={shown(thresholds)} must be positive.")
        if mean not in _MEANS:
            raise InputError(f"{what}: mean={shown(mean)} given; accepted are 'keypoints' and 'points'.")
        self.mean, self.inclusive = mean, inclusive
        super().__init__(self.thresholds, mean, inclusive)

    def update(
        self, points: Tensor, targets: Tensor, visible: Tensor | None = None, sizes: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            points: [N, K, 2]; one that is NaN is not correct.
            targets: [N, K, 2], read where visible.
            visible: [N, K], positive where a keypoint counts; None: everywhere.
            sizes: [N] that divide the distances, or [N, 2] for x and y, in the unit of points; None: distances in
                pixels.

        Raises:
            InputError: a type or shape is unsupported.
        """
        what = type(self).__name__
        offsets, counts = offsets_of(what, points, targets, visible)
        if sizes is not None:
            check_tensor(what, "sizes", sizes)
            count = len(points)
            if sizes.shape not in ((count,), (count, 2)):
                raise InputError(f"{what}: sizes {list(sizes.shape)} given; accepted are [{count}] and [{count}, 2].")
            sizes = sizes.to(offsets.device, offsets.dtype).view(count, 1, -1)
            offsets = offsets / sizes
            self._add("bad_sizes", (~(sizes > 0)).sum())
        distances = offsets.norm(dim=2)
        # Scalars and not a tensor of thresholds: copying one to the device would wait for it.
        below = [distances <= t if self.inclusive else distances < t for t in self.thresholds]
        self._add("hits", torch.stack([(hits & counts).sum(0) for hits in below]))
        self._add("counts", counts.sum(0))

    def compute(self) -> dict[str, float]:
        """Return ``pck@t`` for every threshold.

        Raises:
            InputError: there was no batch, or a size was not positive.
        """
        hits, counts = self._hits_and_counts()
        shares = (hits / counts)[:, counts > 0].mean(1) if self.mean == "keypoints" else hits.sum(1) / counts.sum()
        return {f"pck@{t:g}": share for t, share in zip(self.thresholds, shares.tolist(), strict=True)}

    def per_keypoint(self) -> dict[float, list[float]]:
        """Return the share of each of K keypoints by threshold; NaN for a keypoint that was never visible."""
        hits, counts = self._hits_and_counts()
        return dict(zip(self.thresholds, (hits / counts).tolist(), strict=True))

    def _hits_and_counts(self) -> tuple[Tensor, Tensor]:
        """Return correct [thresholds, K] and visible [K] points, in float64."""
        self._require_batches()
        bad = int(self._totals["bad_sizes"]) if "bad_sizes" in self._totals else 0
        if bad:
            raise InputError(f"{type(self).__name__}: {bad} sizes are not positive.")
        return self._totals["hits"].cpu().double(), self._totals["counts"].cpu().double()


class PCKh(PCK):
    """MPII's PCKh: the size is 0.6 times the diagonal of the head box, and pelvis and thorax do not count.

    The authors' pose repository, ``lib/dataset/mpii.py::evaluate``. ``compute`` returns, from 0 to 1, ``head``,
    ``shoulder``, ``elbow``, ``wrist``, ``hip``, ``knee`` and ``ankle`` at the first threshold, each the mean of its
    left and right keypoint, and ``mean@t`` over all points that count for every threshold. The figure that the authors
    print as ``Mean@0.1`` is ``mean@0.11``: their table of thresholds is read one row too far.

    Args:
        thresholds: shares of the head size.

    Raises:
        InputError: the thresholds are no positive numbers.
    """

    def __init__(self, thresholds: Sequence[float] = (0.5, 0.1, 0.11)) -> None:
        super().__init__(thresholds, mean="points", inclusive=True)

    def update(  # type: ignore[override]
        self, points: Tensor, targets: Tensor, visible: Tensor | None, head_boxes: Tensor
    ) -> None:
        """Add a batch.

        Args:
            points: [N, 16, 2] in image pixels, counted from 0 or 1 as the targets are.
            targets: [N, 16, 2].
            visible: [N, 16], positive where a keypoint counts (1 - the annotation's ``jnt_missing``); None: everywhere.
            head_boxes: [N, 4] as (left, top, right, bottom).

        Raises:
            InputError: a type or shape is unsupported.
        """
        check_tensor("PCKh", "points", points)
        check_tensor("PCKh", "head_boxes", head_boxes)
        keypoints = KEYPOINT_SETS["mpii"].channels
        if points.dim() != 3 or points.shape[1] != keypoints or head_boxes.shape != (len(points), 4):
            raise InputError(
                f"PCKh: points {list(points.shape)} and head_boxes {list(head_boxes.shape)} given; accepted are "
                f"[N, {keypoints}, 2] and [N, 4]."
            )
        corners = head_boxes.to(widest_float(head_boxes.device))
        super().update(points, targets, visible, (corners[:, 2:] - corners[:, :2]).norm(dim=1) * HEAD_SHARE)

    def compute(self) -> dict[str, float]:
        """Return the groups at the first threshold and ``mean@t`` for every threshold."""
        hits, counts = self._hits_and_counts()
        names = KEYPOINT_SETS["mpii"].names
        shares = dict(zip(names, (hits[0] / counts).tolist(), strict=True))
        figures = {
            group: sum(shares[name] for name in members) / len(members) for group, members in _MPII_GROUPS.items()
        }
        counted = [i for i, name in enumerate(names) if name not in _MPII_UNCOUNTED]
        means = hits[:, counted].sum(1) / counts[counted].sum()
        return figures | {f"mean@{t:g}": mean for t, mean in zip(self.thresholds, means.tolist(), strict=True)}


class PixelError(Metric):
    """Distances of visible keypoints from their targets, in the unit of the points.

    ``compute`` returns ``rmse``, the root of the mean squared distance over all visible points of all images, and
    ``mean_error``, the mean distance (which DeepLabCut calls RMSE). Without a visible keypoint they are NaN.
    """

    def __init__(self) -> None:
        super().__init__()

    def update(self, points: Tensor, targets: Tensor, visible: Tensor | None = None) -> None:
        """Add a batch; arguments as :meth:`PCK.update` takes them. A visible point that is NaN makes the figures NaN.

        Raises:
            InputError: a type or shape is unsupported.
        """
        offsets, counts = offsets_of("PixelError", points, targets, visible)
        distances = torch.where(counts, offsets.norm(dim=2), 0)
        self._add("squares", distances.square().sum(0))
        self._add("distances", distances.sum(0))
        self._add("counts", counts.sum(0))

    def compute(self) -> dict[str, float]:
        """Return ``rmse`` and ``mean_error``."""
        squares, distances, counts = self._sums()
        return {
            "rmse": (squares.sum() / counts.sum()).sqrt().item(),
            "mean_error": (distances.sum() / counts.sum()).item(),
        }

    def per_keypoint(self) -> list[float]:
        """Return the mean distance of each of K keypoints; NaN for one that was never visible."""
        _, distances, counts = self._sums()
        return list((distances / counts).tolist())

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        self._require_batches()
        totals = self._totals
        return totals["squares"].cpu().double(), totals["distances"].cpu().double(), totals["counts"].cpu().double()


def offsets_of(what: str, points: Tensor, targets: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the offsets of points from their targets in the widest float, and which of them count [N, K].

    Raises:
        InputError: a type or shape is unsupported.
    """
    for name, value in (("points", points), ("targets", targets)):
        check_tensor(what, name, value)
    check_tensor(what, "visible", visible, optional=True)
    if points.dim() != 3 or points.shape[2] != 2 or targets.shape != points.shape:
        raise InputError(
            f"{what}: points {list(points.shape)} and targets {list(targets.shape)} given; accepted are [N, K, 2] both."
        )
    if visible is not None and visible.shape != points.shape[:2]:
        raise InputError(f"{what}: visible {list(visible.shape)} given; accepted is {list(points.shape[:2])}.")
    real = widest_float(points.device)
    offsets = points.detach().to(real) - targets.detach().to(points.device, real)
    counts = torch.ones_like(offsets[..., 0], dtype=torch.bool) if visible is None else visible.to(points.device) > 0
    return offsets, counts
