"""Keypoint coordinates: decoding and encoding of heatmaps, box crops, mirror pairs. Imports torch alone."""

from hrnet_fast.keypoints.affine import Box, fit_box, fit_boxes, to_image, to_input, warp_matrices, warp_matrix
from hrnet_fast.keypoints.decoding import decode_keypoints
from hrnet_fast.keypoints.encoding import encode_keypoints
from hrnet_fast.keypoints.flipping import Pairs, flip_back, mirror_order, needs_shift
from hrnet_fast.keypoints.keypoint_sets import KEYPOINT_SETS, KeypointSet, keypoint_set_of
from hrnet_fast.keypoints.methods import METHODS

__all__ = [
    "KEYPOINT_SETS",
    "METHODS",
    "Box",
    "KeypointSet",
    "Pairs",
    "decode_keypoints",
    "encode_keypoints",
    "fit_box",
    "fit_boxes",
    "flip_back",
    "keypoint_set_of",
    "mirror_order",
    "needs_shift",
    "to_image",
    "to_input",
    "warp_matrices",
    "warp_matrix",
]
