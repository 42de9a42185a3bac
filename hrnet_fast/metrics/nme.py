"""Facial landmarks: normalised mean error, failure rates and the area under the curve of errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_numbers, check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import keypoint_set_of
from hrnet_fast.keypoints.methods import widest_float
from hrnet_fast.metrics.metric import Metric

_NO_ID = -(2**63)


class NME(Metric):
    """Normalised mean error of faces.

    The error of a face is the mean distance of its landmarks over the face's size: the distance of two landmarks (the
    outer corners of the eyes; in COFW 8 and 9), or for AFLW the size of its box (the authors' face repository,
    ``lib/core/evaluation.py::compute_nme``). ``compute`` returns, from 0 to 1 (the paper has percent)

    - ``nme``: the mean over faces;
    - ``failure@t``: the share of faces with an error above t (``lib/core/function.py``);
    - ``auc@t``: the area under the cumulative distribution of errors from 0 to t, over t. It is integrated exactly: the
      mean over faces of max(0, 1 - error / t). The paper's Table 24 has it at 0.08 and 0.1; the authors' code lacks it.

    Args:
        landmarks: the two whose distance divides the errors, ``"size"`` for sizes that ``update`` takes, or None: those
            of the data set with as many landmarks (98 WFLW, 68 300W, 29 COFW; 19 AFLW ``"size"``).
        thresholds: t of failure rate and AUC.

    Raises:
        InputError: an argument is invalid.
    """

    def __init__(
        self, landmarks: tuple[int, int] | str | None = None, *, thresholds: Sequence[float] = (0.08, 0.1)
    ) -> None:
        pair = isinstance(landmarks, Sequence) and len(landmarks) == 2 and all(type(i) is int for i in landmarks)
        if landmarks is not None and landmarks != "size" and not pair:
            raise InputError(
                f"NME: landmarks={shown(landmarks)} given; accepted are the indices of two landmarks, 'size' and None."
            )
        self.landmarks = landmarks
        self.thresholds = check_numbers("NME", "thresholds", thresholds, "positive numbers")
        if min(self.thresholds) <= 0:
            raise InputError(f"NME: thresholds={shown(thresholds)} must be positive.")
        super().__init__(landmarks, self.thresholds)

    def update(
        self, points: Tensor, targets: Tensor, sizes: Tensor | None = None, ids: Tensor | Sequence[int] | None = None
    ) -> None:
        """Add a batch of faces.

        Args:
            points: [N, K, 2] in image pixels.
            targets: [N, K, 2].
            sizes: [N] in pixels, for ``landmarks="size"``.
            ids: N integers that name the images, for :meth:`per_image`; None: their numbers in the order of updates.

        Raises:
            InputError: a type or shape is unsupported, or sizes are missing or not in use.
        """
        for name, value in (("points", points), ("targets", targets)):
            check_tensor("NME.update", name, value)
        check_tensor("NME.update", "sizes", sizes, optional=True)
        if points.dim() != 3 or points.shape[2] != 2 or targets.shape != points.shape:
            raise InputError(
                f"NME: points {list(points.shape)} and targets {list(targets.shape)} given; accepted are two [N, K, 2]."
            )
        real = widest_float(points.device)
        points, targets = points.detach().to(real), targets.detach().to(points.device, real)
        scale = self._scale(targets, sizes)
        errors = (points - targets).norm(dim=2).mean(1) / scale
        given = torch.full((len(points),), _NO_ID) if ids is None else torch.as_tensor(ids, dtype=torch.int64)
        if given.shape != errors.shape:
            raise InputError(f"NME: {list(given.shape)} ids given for {len(points)} faces.")
        self._add_samples(errors, given)

    def _scale(self, targets: Tensor, sizes: Tensor | None) -> Tensor:
        keypoints = targets.shape[1]
        landmarks = self.landmarks
        if landmarks is None:
            dataset = keypoint_set_of(keypoints)
            landmarks = dataset.interocular if dataset is not None else None
            if dataset is not None and dataset.name == "aflw":
                landmarks = "size"
        if landmarks is None:
            raise InputError(
                f"NME: no data set with {keypoints} landmarks is known; give landmarks=, the indices of two whose "
                "distance divides the errors, or 'size'."
            )
        if landmarks == "size":
            if sizes is None or sizes.shape != targets.shape[:1]:
                given = "None" if sizes is None else str(list(sizes.shape))
                raise InputError(f"NME: sizes {given} given; needed are the sizes of {len(targets)} faces in pixels.")
            return sizes.detach().to(targets.device, targets.dtype)
        if sizes is not None:
            raise InputError(f"NME: sizes given, but landmarks {landmarks} divide the errors; use landmarks='size'.")
        first, second = int(landmarks[0]), int(landmarks[1])
        if not (0 <= first < keypoints and 0 <= second < keypoints):
            raise InputError(f"NME: landmarks {landmarks} given; there are {keypoints}, from 0.")
        distance: Tensor = (targets[:, first] - targets[:, second]).norm(dim=1)
        return distance

    def per_image(self) -> dict[int, float]:
        """Return the error of each face by id.

        Raises:
            InputError: there was no batch, an error is infinite or NaN, or an id names two faces.
        """
        self._require_batches()
        errors, ids = self._all_samples()
        bad = int((~errors.isfinite()).sum())
        if bad:
            raise InputError(
                f"NME: the errors of {bad} faces are infinite or NaN: a size of 0, or a point that is NaN."
            )
        if (ids == _NO_ID).any():
            ids = torch.arange(len(ids))
        found = dict(zip(ids.tolist(), errors.tolist(), strict=True))
        if len(found) != len(errors):
            raise InputError(f"NME: {len(errors) - len(found)} faces have the id of another one; evaluate each once.")
        return found

    def compute(self) -> dict[str, float]:
        """Return ``nme`` and, for each threshold, ``failure@t`` and ``auc@t``."""
        errors = torch.tensor(list(self.per_image().values()), dtype=torch.float64)
        figures = {"nme": errors.mean().item()}
        for t in self.thresholds:
            figures[f"failure@{t:g}"] = (errors > t).double().mean().item()
            figures[f"auc@{t:g}"] = (1 - errors / t).clamp(min=0).mean().item()
        return figures
