"""Object keypoint similarity, the scores of poses, and the suppression of duplicate poses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast.checks import check_integer, check_number, check_numbers, check_tensor
from hrnet_fast.errors import InputError, shown
from hrnet_fast.keypoints import KEYPOINT_SETS
from hrnet_fast.keypoints.methods import widest_float

_SPACING = 2.0**-52  # numpy.spacing(1), which COCO's code adds to an area


def oks(
    points: Tensor,
    targets: Tensor,
    areas: Tensor,
    sigmas: Sequence[float] | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Return the object keypoint similarity of poses, from 0 to 1.

    COCO's definition: the mean over visible keypoints of ``exp(-d^2 / (2 * area * (2 * sigma)^2))``, where d is the
    distance of a keypoint from its target.

    Args:
        points: [..., K, 2] in image pixels.
        targets: [..., K, 2]; leading dimensions broadcast with those of `points`.
        areas: [...] of the objects in square pixels: of the annotation, or the mean of both poses' for suppression.
        sigmas: K standard deviations; None: COCO's, for 17 keypoints.
        visible: [..., K], positive where a keypoint counts; None: everywhere.

    Returns:
        [...] in float64; 0 where no keypoint is visible. (COCO's evaluation then compares with the box.)

    Raises:
        InputError: an argument has an unsupported type or shape.
    """
    _check_points("oks", points=points, targets=targets)
    check_tensor("oks", "areas", areas)
    check_tensor("oks", "visible", visible, optional=True)
    real = widest_float(points.device)
    scale = check_sigmas("oks", points.shape[-2], sigmas).to(points.device, real)
    distances = (points.to(real) - targets.to(real)).square().sum(-1)
    similarity = (-(distances / (2 * scale).square() / (areas.to(real) + _SPACING).unsqueeze(-1) / 2)).exp()
    if visible is None:
        return similarity.mean(-1)
    counts = visible > 0
    return torch.where(counts, similarity, 0).sum(-1) / counts.sum(-1).clamp(min=1)


def rescore_poses(scores: Tensor, box_scores: Tensor, threshold: float = 0.2) -> Tensor:
    """Return the scores of poses: the box's score times the mean of the keypoints' scores above a threshold.

    The authors' pose repository, ``lib/dataset/coco.py`` (``TEST.IN_VIS_THRE``).

    Args:
        scores: [N, K] of the keypoints, heatmap maxima.
        box_scores: [N] of the person detector; ones for annotated boxes.
        threshold: keypoints with a score at or below it do not count.

    Returns:
        [N] in float64; 0 for a pose without a keypoint above the threshold.

    Raises:
        InputError: an argument has an unsupported type or shape.
    """
    check_tensor("rescore_poses", "scores", scores)
    check_tensor("rescore_poses", "box_scores", box_scores)
    check_number("rescore_poses", "threshold", threshold)
    if scores.dim() != 2 or box_scores.shape != scores.shape[:1]:
        raise InputError(
            f"rescore_poses: scores {list(scores.shape)} and box_scores {list(box_scores.shape)} given; accepted are "
            "[N, K] and [N]."
        )
    real = widest_float(scores.device)
    counts = scores > threshold
    mean = torch.where(counts, scores.to(real), 0).sum(1) / counts.sum(1).clamp(min=1)
    return mean * box_scores.to(real)


def oks_nms(
    points: Tensor, scores: Tensor, areas: Tensor, threshold: float = 0.9, sigmas: Sequence[float] | None = None
) -> list[int]:
    """Return the poses of one image that remain when each pose suppresses those of lower score that resemble it.

    The authors' ``oks_nms`` (pose repository, ``lib/nms/nms.py``): a pose is suppressed where its similarity to a kept
    one is above the threshold, by the mean of both areas.

    Args:
        points: [N, K, 2] in image pixels.
        scores: [N].
        areas: [N] in square pixels; in the authors' evaluation those of the enlarged boxes
            (:func:`~hrnet_fast.keypoints.fit_box`).
        threshold: the authors' ``TEST.OKS_THRE``.
        sigmas: as :func:`oks` takes them.

    Returns:
        Indices of the poses kept, by falling score; of equal scores the later pose comes first, as in theirs.

    Raises:
        InputError: an argument has an unsupported type or shape.
    """
    similarity, values = _compare_all("oks_nms", points, scores, areas, threshold, sigmas)
    order = _descending(values, list(range(len(values))))
    kept = []
    while order:
        best, rest = order[0], order[1:]
        kept.append(best)
        order = [other for other in rest if similarity[best][other] <= threshold]
    return kept


def soft_oks_nms(
    points: Tensor,
    scores: Tensor,
    areas: Tensor,
    threshold: float = 0.9,
    sigmas: Sequence[float] | None = None,
    *,
    max_kept: int = 20,
) -> list[int]:
    """Return up to `max_kept` poses of one image, in the order of scores that resemblance to earlier ones lowers.

    The authors' ``soft_oks_nms`` (``lib/nms/nms.py``, ``TEST.SOFT_NMS``): each pose taken multiplies the scores of the
    others by ``exp(-similarity^2 / threshold)``. The lowered scores decide the order alone; the poses keep theirs.

    Args and raises: as :func:`oks_nms`; `max_kept` is at least 1.
    """
    check_integer("soft_oks_nms", "max_kept", max_kept)
    similarity, values = _compare_all("soft_oks_nms", points, scores, areas, threshold, sigmas)
    if threshold <= 0:
        raise InputError(f"soft_oks_nms: threshold={threshold} must be positive.")
    order = _descending(values, list(range(len(values))))
    kept: list[int] = []
    while order and len(kept) < max_kept:
        best, rest = order[0], order[1:]
        kept.append(best)
        decay = -torch.tensor([similarity[best][other] for other in rest], dtype=torch.float64).square() / threshold
        for other, factor in zip(rest, decay.exp().tolist(), strict=True):
            values[other] *= factor
        order = _descending(values, rest)
    return kept


def _descending(values: list[float], order: list[int]) -> list[int]:
    """Return `order` by falling value, the last of equals first: numpy's ``argsort()[::-1]``."""
    return sorted(order, key=values.__getitem__)[::-1]


def _compare_all(
    what: str, points: Tensor, scores: Tensor, areas: Tensor, threshold: float, sigmas: Sequence[float] | None
) -> tuple[list[list[float]], list[float]]:
    """Return the similarities [N][N] and the scores [N]."""
    _check_points(what, points=points)
    for name, value in (("scores", scores), ("areas", areas)):
        check_tensor(what, name, value)
        if points.dim() != 3 or value.shape != points.shape[:1]:
            raise InputError(
                f"{what}: points {list(points.shape)} and {name} {list(value.shape)} given; accepted are [N, K, 2] and "
                "[N]."
            )
    check_number(what, "threshold", threshold)
    if not len(points):
        return [], []
    points, areas = points.detach().cpu().double(), areas.detach().cpu().double()
    similarity = oks(points[:, None], points[None], (areas[:, None] + areas[None]) / 2, sigmas)
    return similarity.tolist(), scores.detach().cpu().double().tolist()


def check_sigmas(what: str, keypoints: int, sigmas: Sequence[float] | None) -> Tensor:
    """Return `sigmas`, or COCO's, as float64 [K].

    Raises:
        InputError: there is not one positive number per keypoint.
    """
    if sigmas is None:
        sigmas = KEYPOINT_SETS["coco"].sigmas
        if keypoints != len(sigmas):
            raise InputError(
                f"{what}: {keypoints} keypoints; COCO's sigmas are for 17. Give sigmas=, one per keypoint."
            )
    found = check_numbers(what, "sigmas", sigmas, "positive numbers")
    if len(found) != keypoints or min(found) <= 0:
        raise InputError(
            f"{what}: sigmas={shown(sigmas)}; accepted are {keypoints} positive numbers, one per keypoint."
        )
    return torch.tensor(found, dtype=torch.float64)


def _check_points(what: str, **points: Tensor) -> None:
    for name, value in points.items():
        check_tensor(what, name, value)
        if value.dim() < 2 or value.shape[-1] != 2:
            raise InputError(f"{what}: {name} {list(value.shape)} given; accepted is [..., K, 2] as (x, y).")
