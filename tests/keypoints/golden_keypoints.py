"""Numbers that the upstreams' own code gave, for the tests of coordinates.

``coordinates.npz`` and ``keypoints.npz`` come from the authors' pose code (``lib/core/inference.py::get_final_preds``,
``lib/dataset/JointsDataset.py::generate_target``, ``lib/utils/transforms.py::flip_back``), the authors' face code
(``lib/core/evaluation.py::decode_preds``) and mmpose 1.3.2 (``codecs/utils/refinement.py``, ``gaussian_heatmap.py``),
run on the heatmaps and joints in the files. ``keypoints.npz`` has peaks at and beside every border of heatmaps
[3, 13, 16, 12] for an input of 64x48; of image 2, heatmap 0 is nowhere positive and heatmap 1 is zero; its
``face_points`` are in heatmap pixels counted from 1, before the authors make whole pixels of them. ``crops.npz`` holds
a picture, boxes and what the authors' two ``crop`` functions (their ``imresize`` replaced by Pillow's on bytes) and
OpenCV 5.0's ``warpAffine`` with mmpose's ``get_udp_warp_matrix`` cut out of it, and targets of the face code's
``generate_target``. ``flip_indices.npz`` are those of mmpose's metainfo; the authors' pairs are the same.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "golden"


@functools.cache
def golden(name: str) -> dict[str, Tensor]:
    """Return the arrays of ``tests/golden/<name>.npz``."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}
