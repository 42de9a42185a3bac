"""Predictions on images: pose, segmentation, classification, landmarks, detection, with a picture of each.

``TASKS[name].predict(model, image, options)`` returns a :class:`Prediction`; :func:`hrnet_fast.load_checkpoint` gives
the model.
"""

from hrnet_fast.detection.defaults import KINDS
from hrnet_fast.tasks.classification import predict_classes
from hrnet_fast.tasks.detection import predict_detections
from hrnet_fast.tasks.pose import predict_keypoints, predict_landmarks
from hrnet_fast.tasks.prediction import Options, Prediction, Task
from hrnet_fast.tasks.segmentation import predict_segmentation

_BILINEAR = ("align_corners", "in_channels")
TASKS: dict[str, Task] = {
    "pose": Task(
        predict_keypoints, ("v1", "v1h", "v2"), ("size", "boxes", "flip", "threshold", "decode"), network=_BILINEAR
    ),
    "segmentation": Task(
        predict_segmentation, ("v1h", "v2", "ocr"), ("size", "flip", "labels"), maps=("labels",), network=_BILINEAR
    ),
    "classification": Task(
        predict_classes, ("c", "ci", "cii"), ("size", "flip", "labels", "top"), network=("in_channels",)
    ),
    "landmarks": Task(
        predict_landmarks, ("face", "v2", "v1"), ("size", "boxes", "flip", "threshold", "decode"), network=_BILINEAR
    ),
    "detection": Task(predict_detections, KINDS, ("labels", "threshold")),
}

__all__ = ["TASKS", "Options", "Prediction", "Task"]
