"""Heads: the layers after the last stage, one file per family; :func:`make_head` selects by ``config.head.kind``.

A head names the layers that the network registers at its top level, where the authors' checkpoints have them, and
computes the output from the network's features by those names. It holds no tensor of its own, so moving, copying,
pickling or replacing the network's layers needs nothing from it.
"""

from hrnet_fast.config import HRNetConfig
from hrnet_fast.reference.heads.base import Head, Output
from hrnet_fast.reference.heads.classification import (
    ClassificationHead,
    PooledClassificationHead,
    StridedClassificationHead,
)
from hrnet_fast.reference.heads.dense import FaceHead, FeaturesHead, V1Head, V1hHead, V2Head
from hrnet_fast.reference.heads.detection import HRFPN, PyramidHead
from hrnet_fast.reference.heads.higher import HigherHead
from hrnet_fast.reference.heads.ocr import OCRHead

HEADS: dict[str, type[Head]] = {
    "features": FeaturesHead,
    "v1": V1Head,
    "v1h": V1hHead,
    "v2": V2Head,
    "v2p": PyramidHead,
    "ocr": OCRHead,
    "face": FaceHead,
    "higher": HigherHead,
    "c": ClassificationHead,
    "ci": PooledClassificationHead,
    "cii": StridedClassificationHead,
}


def make_head(config: HRNetConfig) -> Head:
    """Return the head that `config` describes."""
    return HEADS[config.head.kind](config)


__all__ = ["HEADS", "HRFPN", "Head", "Output", "make_head"]
