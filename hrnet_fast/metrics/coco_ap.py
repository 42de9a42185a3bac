"""COCO's average precision of keypoints, boxes and masks, by faster-coco-eval or pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_integer, check_number, check_tensor
from hrnet_fast.errors import InputError, shown, some_of
from hrnet_fast.metrics.coco_files import find_evaluator, index_annotations, read_annotations
from hrnet_fast.metrics.keypoint_similarity import check_sigmas, oks_nms, rescore_poses, soft_oks_nms
from hrnet_fast.metrics.metric import Metric

KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
BOX_FIGURES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")
_SUPPRESSIONS = {"oks": oks_nms, "soft": soft_oks_nms}


class _COCOMetric(Metric):
    """A metric that COCO's evaluation computes from results and an annotation file.

    ``compute`` returns COCO's figures from 0 to 1; -1 where no object has the size.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any],
        kind: str,
        evaluator: str | None,
        sigmas: tuple[float, ...] | None,
        *settings: object,
    ) -> None:
        super().__init__(kind, sigmas, *settings)
        self._modules = find_evaluator(evaluator)
        self._annotations = read_annotations(annotations)
        self._kind, self._sigmas = kind, sigmas

    def results(self) -> list[dict[str, Any]]:
        """Return what was added in COCO's result format, as its evaluation servers take it."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Return COCO's figures by name.

        Raises:
            InputError: a result's image is not among the annotated ones.
        """
        return self._figures(self._evaluated())

    def _figures(self, evaluation: Any) -> dict[str, float]:
        names = KEYPOINT_FIGURES if self._kind == "keypoints" else BOX_FIGURES
        return {name: float(value) for name, value in zip(names, evaluation.stats, strict=True)}

    def _evaluated(self) -> Any:
        """Return COCO's evaluation after its summary."""
        results = self.results()
        known = {image["id"] for image in self._annotations["images"]}
        others = sorted({str(result["image_id"]) for result in results if result["image_id"] not in known})
        if others:
            raise InputError(f"{type(self).__name__}: results of images {some_of(others)}, which are not annotated.")
        coco_class, evaluation_class = self._modules
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            truth = index_annotations(coco_class(), self._annotations)
            if results:
                found = truth.loadRes(results)
            else:  # pycocotools' loadRes reads the first result
                found = index_annotations(coco_class(), {**self._annotations, "annotations": []})
            evaluation = evaluation_class(truth, found, self._kind)
            if self._sigmas is not None:
                evaluation.params.kpt_oks_sigmas = torch.tensor(self._sigmas, dtype=torch.float64).numpy()
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation


class COCODetectionAP(_COCOMetric):
    """COCO's average precision and recall of boxes or masks.

    ``compute`` returns AP, AP50, AP75, APS, APM, APL, AR1, AR10, AR100, ARS, ARM and ARL, from 0 to 1; -1 where no
    annotated object has the size.

    Args:
        annotations: COCO's JSON file, or its content.
        kind: ``"bbox"`` or ``"segm"``.
        evaluator: ``"faster-coco-eval"`` or ``"pycocotools"``; None: the first of them that is installed.

    Raises:
        InputError: the annotations cannot be read, the kind or evaluator is unknown, or no evaluator is installed.
    """

    def __init__(
        self, annotations: str | Path | Mapping[str, Any], kind: str = "bbox", *, evaluator: str | None = None
    ) -> None:
        if kind not in ("bbox", "segm"):
            raise InputError(f"COCODetectionAP: kind={shown(kind)} given; accepted are 'bbox' and 'segm'.")
        super().__init__(annotations, kind, evaluator, None)

    def keep_images(self, image_ids: Collection[int]) -> None:
        """Leave the annotations of other images out, such as of pictures that cannot be read.

        Args:
            image_ids: COCO's.
        """
        content = self._annotations
        self._annotations = {
            **content,
            "images": [image for image in content["images"] if image["id"] in image_ids],
            "annotations": [one for one in content["annotations"] if one["image_id"] in image_ids],
        }

    def update(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Add detections in COCO's result format.

        Args:
            results: dictionaries with ``image_id``, ``category_id``, ``score`` and ``bbox`` (left, top, width, height
                in pixels) or ``segmentation`` (run-length encoding).

        Raises:
            InputError: a detection lacks one of them.
        """
        needed = ("image_id", "category_id", "score", "bbox" if self._kind == "bbox" else "segmentation")
        for result in results:
            lacking = [name for name in needed if name not in result]
            if lacking:
                raise InputError(f"COCODetectionAP: a detection without {', '.join(lacking)}; needed are {needed}.")
            self._records.append({name: result[name] for name in needed})

    def results(self) -> list[dict[str, Any]]:
        """Return the detections in COCO's result format."""
        return [dict(record) for record in self._records]

    def compute_with_classes(self) -> dict[str, float]:
        """Return what :meth:`compute` does, and ``AP/<category>`` of each category that is annotated."""
        evaluation = self._evaluated()
        names = {category["id"]: str(category["name"]) for category in self._annotations["categories"]}
        # IoU thresholds, recalls, categories; of sizes the first, which is all; of numbers of detections the largest.
        precision = torch.as_tensor(evaluation.eval["precision"])[:, :, :, 0, -1]
        figures = self._figures(evaluation)
        for number, values in zip(evaluation.params.catIds, precision.unbind(2), strict=True):
            counted = values[values > -1]
            if len(counted):
                figures[f"AP/{names[number]}"] = float(counted.mean())
        return figures


class COCOKeypointAP(_COCOMetric):
    """COCO's average precision and recall of keypoints, with the authors' scores and suppression of duplicates.

    ``compute`` returns AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM and ARL, from 0 to 1; -1 where no annotated object
    has the size. The authors' pose repository, ``lib/dataset/coco.py::evaluate``: the score of a pose is
    :func:`~hrnet_fast.metrics.rescore_poses`, then :func:`~hrnet_fast.metrics.oks_nms` removes duplicates.

    Args:
        annotations: COCO's JSON file (``person_keypoints_val2017.json``), or its content.
        suppression: ``"oks"`` (:func:`~hrnet_fast.metrics.oks_nms`), ``"soft"``
            (:func:`~hrnet_fast.metrics.soft_oks_nms`) or None.
        oks_threshold: of the suppression; the authors' ``TEST.OKS_THRE``.
        rescore: whether the score is the box's times the mean of the keypoints'; otherwise it is the box's.
        score_threshold: keypoints at or below it do not count there; the authors' ``TEST.IN_VIS_THRE``.
        sigmas: one per keypoint; None: COCO's, for 17. In use for suppression and AP.
        category_id: of the results.
        evaluator: ``"faster-coco-eval"`` or ``"pycocotools"``; None: the first of them that is installed.

    Raises:
        InputError: the annotations cannot be read, a setting is invalid, or no evaluator is installed.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any],
        *,
        suppression: str | None = "oks",
        oks_threshold: float = 0.9,
        rescore: bool = True,
        score_threshold: float = 0.2,
        sigmas: Sequence[float] | None = None,
        category_id: int = 1,
        evaluator: str | None = None,
    ) -> None:
        what = "COCOKeypointAP"
        if suppression is not None and suppression not in _SUPPRESSIONS:
            raise InputError(f"{what}: suppression={shown(suppression)} given; accepted are 'oks', 'soft' and None.")
        check_number(what, "oks_threshold", oks_threshold)
        check_number(what, "score_threshold", score_threshold)
        check_bool(what, rescore=rescore)
        check_integer(what, "category_id", category_id, least=0)
        given = None if sigmas is None else tuple(check_sigmas(what, len(sigmas), sigmas).tolist())
        options = (suppression, oks_threshold, rescore, score_threshold, category_id)
        super().__init__(annotations, "keypoints", evaluator, given, *options)
        self.suppression, self.oks_threshold, self.category_id = suppression, oks_threshold, category_id
        self.rescore, self.score_threshold = rescore, score_threshold

    def update(
        self,
        points: Tensor,
        scores: Tensor,
        image_ids: Tensor | Sequence[int],
        areas: Tensor,
        box_scores: Tensor | None = None,
    ) -> None:
        """Add poses.

        Args:
            points: [N, K, 2] as (x, y) in image pixels.
            scores: [N, K] of the keypoints, heatmap maxima (:func:`~hrnet_fast.keypoints.decode_keypoints`).
            image_ids: N integers, COCO's.
            areas: [N] in square pixels; in the authors' evaluation those of the enlarged boxes
                (:func:`~hrnet_fast.keypoints.fit_box`).
            box_scores: [N] of the detector; None: ones, as the authors have it for annotated boxes.

        Raises:
            InputError: an argument has an unsupported type or shape.
        """
        what = "COCOKeypointAP.update"
        check_tensor(what, "points", points)
        if points.dim() != 3 or points.shape[2] != 2:
            raise InputError(f"{what}: points {list(points.shape)} given; accepted is [N, K, 2] as (x, y).")
        check_sigmas(what, points.shape[1], self._sigmas)
        count = points.shape[0]
        image_ids = torch.as_tensor(image_ids, dtype=torch.int64)
        box_scores = points.new_ones(count) if box_scores is None else box_scores
        shapes = {"scores": (scores, points.shape[:2]), "image_ids": (image_ids, points.shape[:1])}
        shapes |= {"areas": (areas, points.shape[:1]), "box_scores": (box_scores, points.shape[:1])}
        for name, (value, shape) in shapes.items():
            check_tensor(what, name, value)
            if value.shape != shape:
                raise InputError(f"{what}: {name} {list(value.shape)} given for points {list(points.shape)}.")
        self._add_samples(points, scores, image_ids, areas, box_scores)

    def results(self) -> list[dict[str, Any]]:
        """Return the poses that the suppression kept in COCO's result format, with the scores of keypoints as theirs.

        Raises:
            InputError: a point or a score is infinite or NaN.
        """
        columns = self._all_samples()
        if not columns:
            return []
        points, scores, image_ids, areas, box_scores = columns
        totals = rescore_poses(scores, box_scores, self.score_threshold) if self.rescore else box_scores.double()
        flat = torch.cat([points.double(), scores.double().unsqueeze(2)], dim=2).flatten(1)
        if not (flat.isfinite().all() and totals.isfinite().all()):
            raise InputError("COCOKeypointAP: points or scores of a pose are infinite or NaN.")
        of_image: dict[int, list[int]] = {}
        for pose, image in enumerate(image_ids.tolist()):
            of_image.setdefault(image, []).append(pose)
        results = []
        for image, poses in of_image.items():
            kept = list(range(len(poses)))
            if self.suppression is not None:
                suppress = _SUPPRESSIONS[self.suppression]
                kept = suppress(points[poses], totals[poses], areas[poses], self.oks_threshold, self._sigmas)
            results += [
                {
                    "image_id": image,
                    "category_id": self.category_id,
                    "keypoints": flat[pose].tolist(),
                    "score": totals[pose].item(),
                }
                for pose in (poses[i] for i in kept)
            ]
        return results
