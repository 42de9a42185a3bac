"""Losses of the authors' training recipes: they can be captured in a CUDA graph and repeat bit for bit.

None reads a value on the host or selects a number of elements that depends on values. Half types are computed and
summed in float32, under autocast and without it; float64 stays. Cross entropy of classification, with label smoothing
and of mixed classes, is :class:`torch.nn.CrossEntropyLoss`.
"""

from hrnet_fast.training.losses.auxiliary import AuxiliaryLoss
from hrnet_fast.training.losses.cross_entropy import PixelCrossEntropyLoss, pixel_cross_entropy
from hrnet_fast.training.losses.heatmaps import (
    KeypointMSELoss,
    KeypointOHKMLoss,
    LandmarkMSELoss,
    keypoint_mse,
    keypoint_ohkm,
    landmark_mse,
)
from hrnet_fast.training.losses.ohem import OHEMCrossEntropyLoss, ohem_cross_entropy
from hrnet_fast.training.losses.upsampling import upsample_logits

__all__ = [
    "AuxiliaryLoss",
    "KeypointMSELoss",
    "KeypointOHKMLoss",
    "LandmarkMSELoss",
    "OHEMCrossEntropyLoss",
    "PixelCrossEntropyLoss",
    "keypoint_mse",
    "keypoint_ohkm",
    "landmark_mse",
    "ohem_cross_entropy",
    "pixel_cross_entropy",
    "upsample_logits",
]
