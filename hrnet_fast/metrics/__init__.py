"""Metrics of the paper's tasks by the authors' definitions, each usable alone; figures are from 0 to 1."""

from hrnet_fast.metrics.coco_ap import COCODetectionAP, COCOKeypointAP
from hrnet_fast.metrics.confusion_matrix import ConfusionMatrix
from hrnet_fast.metrics.keypoint_similarity import oks, oks_nms, rescore_poses, soft_oks_nms
from hrnet_fast.metrics.metric import Metric
from hrnet_fast.metrics.nme import NME
from hrnet_fast.metrics.pck import PCK, PCKh, PixelError
from hrnet_fast.metrics.top_k import TopKAccuracy

__all__ = [
    "NME",
    "PCK",
    "COCODetectionAP",
    "COCOKeypointAP",
    "ConfusionMatrix",
    "Metric",
    "PCKh",
    "PixelError",
    "TopKAccuracy",
    "oks",
    "oks_nms",
    "rescore_poses",
    "soft_oks_nms",
]
