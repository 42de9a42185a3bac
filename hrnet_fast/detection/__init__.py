"""Detection and instance segmentation on HRNetV2p, compatible with mmdetection's checkpoints."""

from hrnet_fast.detection.defaults import KINDS, make_detector_config
from hrnet_fast.detection.detector import Detector, total_loss
from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.detection.results import Detections, ImageMeta, Target

__all__ = [
    "KINDS",
    "Detections",
    "Detector",
    "DetectorConfig",
    "ImageMeta",
    "Target",
    "make_detector_config",
    "total_loss",
]
