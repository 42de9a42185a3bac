"""Evaluation of networks by the authors' protocols: crops, test-time augmentation, decoding and metrics."""

from hrnet_fast.evaluation.classification import evaluate_classification
from hrnet_fast.evaluation.detection import evaluate_detection
from hrnet_fast.evaluation.keypoints import evaluate_keypoints
from hrnet_fast.evaluation.result import EvaluationResult, SampleResult
from hrnet_fast.evaluation.segmentation import evaluate_segmentation

__all__ = [
    "EvaluationResult",
    "SampleResult",
    "evaluate_classification",
    "evaluate_detection",
    "evaluate_keypoints",
    "evaluate_segmentation",
]
