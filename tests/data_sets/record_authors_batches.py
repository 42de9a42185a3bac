"""Records what the authors' loaders and OpenCV 4 make of made pictures, for ``test_authors_batches.py``.

``python tests/data_sets/record_authors_batches.py POSE SEGMENTATION`` with checkouts of the authors' repositories (the
segmentation one on the branch HRNet-OCR) and ``opencv-python-headless<5``, whose warps round as those of their time.
"""

from __future__ import annotations

import random
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from made_files import PAIRS, UPPER, pattern, save_picture, seeded_points

FOLDER = Path(__file__).parent


def record_pose(checkout: Path, results: dict[str, Any]) -> None:
    """Ten samples of ``JointsDataset`` with its random numbers, which its ``meta`` reveals."""
    sys.modules["dataset"] = package = types.ModuleType("dataset")  # its __init__ asks for compiled modules
    package.__path__ = [str(checkout / "lib" / "dataset")]
    sys.path.insert(0, str(checkout / "lib"))
    from dataset import JointsDataset as module

    kind = types.SimpleNamespace
    config = kind(
        OUTPUT_DIR="",
        DATASET=kind(DATA_FORMAT="png", SCALE_FACTOR=0.35, ROT_FACTOR=45, FLIP=True, NUM_JOINTS_HALF_BODY=8,
                     PROB_HALF_BODY=0.3, COLOR_RGB=True),
        MODEL=kind(TARGET_TYPE="gaussian", IMAGE_SIZE=[48, 64], HEATMAP_SIZE=[12, 16], SIGMA=2),
        LOSS=kind(USE_DIFFERENT_JOINTS_WEIGHT=False),
    )  # fmt: skip
    mirrored: list[bool] = []
    flip = module.fliplr_joints
    module.fliplr_joints = lambda *given: (mirrored.append(True), flip(*given))[1]
    dataset = module.JointsDataset(config, "", "", True)
    dataset.num_joints, dataset.flip_pairs, dataset.upper_body_ids, dataset.aspect_ratio = 17, PAIRS, UPPER, 0.75
    picture = save_picture(Path(tempfile.mkdtemp()) / "made.png", 60, 80)
    random.seed(0)
    np.random.seed(0)
    for i in range(10):
        points, visible = seeded_points(i)
        joints = np.concatenate([points, np.zeros((17, 1))], 1)
        box = {"center": np.array([40, 30], np.float32), "scale": np.array([0.24, 0.32], np.float32)}
        seen = np.repeat(visible[:, None], 3, 1)
        dataset.db = [{"image": str(picture), "joints_3d": joints, "joints_3d_vis": seen, **box}]
        mirrored.clear()
        crop, target, weight, meta = dataset[0]
        matrix = module.get_affine_transform(meta["center"], meta["scale"], meta["rotation"], dataset.image_size)
        results[f"pose{i}_draw"] = np.array([*meta["center"], *meta["scale"], meta["rotation"], bool(mirrored)])
        results |= {f"pose{i}_matrix": matrix, f"pose{i}_crop": crop, f"pose{i}_target": target}
        results[f"pose{i}_weight"] = weight
    for name, below in (("upper", -1.0), ("lower", 1.0)):
        np.random.randn = lambda *_, below=below: below
        centres = [
            dataset.half_body_transform(np.c_[points, points[:, :1]], np.repeat(visible[:, None], 3, 1))
            for points, visible in map(seeded_points, range(10))
        ]
        results[f"half_{name}"] = np.array([[*c, *s] for c, s in centres])


def record_segmentation(checkout: Path, results: dict[str, Any]) -> None:
    """Crops of ``BaseDataset.gen_sample`` with given random numbers: padded, cut, stretched."""
    sys.modules["config"] = types.ModuleType("config")
    sys.modules["config"].config = types.SimpleNamespace(TRAIN=types.SimpleNamespace(RANDOM_BRIGHTNESS=False))
    sys.modules["datasets"] = package = types.ModuleType("datasets")
    package.__path__ = [str(checkout / "lib" / "datasets")]
    sys.path.insert(0, str(checkout / "lib"))
    from datasets.base_dataset import BaseDataset

    np.int = int  # the checkout is older than numpy 1.24
    image, labels = pattern(40, 56)[:, :, ::-1], (pattern(40, 56)[..., 0] // 13).astype(np.uint8)
    for i, (scale, corner, flip) in enumerate([(0, (0, 0), 1), (9, (3, 17), -1), (16, (30, 41), 1)]):
        numbers = [scale, corner[1], corner[0]]
        random.randint = lambda *_, numbers=numbers: numbers.pop(0)
        np.random.choice = lambda _, flip=flip: (flip + 1) // 2
        loader = BaseDataset(ignore_label=255, base_size=56, crop_size=(32, 48), scale_factor=16)
        results[f"seg{i}_image"], results[f"seg{i}_labels"] = loader.gen_sample(image, labels)


if __name__ == "__main__":
    assert cv2.__version__.startswith("4."), "OpenCV 5 does not round positions"
    recorded: dict[str, Any] = {}
    record_pose(Path(sys.argv[1]), recorded)
    record_segmentation(Path(sys.argv[2]), recorded)
    np.savez_compressed(FOLDER / "authors_batches.npz", **recorded)
