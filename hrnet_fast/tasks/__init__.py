"""From an image file to an answer and a picture: pose, segmentation, classification, landmarks.

``TASKS[name].predict(model, image, options)`` returns a :class:`Prediction`. Models come from
:func:`hrnet_fast.load_checkpoint`; drawing and decoding are here, networks are not.
"""

from hrnet_fast.tasks.classification import predict_classes
from hrnet_fast.tasks.pose import predict_keypoints, predict_landmarks
from hrnet_fast.tasks.prediction import Options, Prediction, Predictor
from hrnet_fast.tasks.segmentation import predict_segmentation

# task -> (predictor, head kinds that answer it)
TASKS: dict[str, tuple[Predictor, tuple[str, ...]]] = {
    "pose": (predict_keypoints, ("v1", "v1h", "v2")),
    "segmentation": (predict_segmentation, ("v1h", "v2", "ocr")),
    "classification": (predict_classes, ("c", "ci", "cii")),
    "landmarks": (predict_landmarks, ("face", "v2", "v1")),
}

__all__ = ["TASKS", "Options", "Prediction"]
