"""Input of training: decoded, cropped and normalised batches on the device, with heatmaps or labels.

This package decodes in workers and computes crops and targets for a whole batch; the contender does everything for each
sample in its workers, as the authors' data sets do. Both read the same files with the same number of workers. A call is
one pass over all pictures; there is no training step beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader, Dataset

import hrnet_fast
from benchmarks.harness import Case, Entry, Session
from benchmarks.numpy_loaders import UNAVAILABLE, NumpyKeypoints, NumpySegmentation
from hrnet_fast import datasets
from hrnet_fast.datasets.keypoint_dataset import KeypointRow
from hrnet_fast.keypoints import KEYPOINT_SETS
from hrnet_fast.measure import Call

PHOTOGRAPH = Path(hrnet_fast.__file__).parent / "data" / "astronaut.jpg"
COCO = KEYPOINT_SETS["coco"]
FILES = 32  # that are different; a pass reads each several times
# Task: size (H, W) of the pictures and of the crops, at the paper's scale and at the small scale.
SIZES = {
    "pose": {"paper": ((480, 640), (256, 192)), "small": ((480, 640), (256, 192))},
    "segmentation": {"paper": ((1024, 2048), (512, 1024)), "small": ((360, 480), (240, 320))},
}


def save_pictures(folder: Path, size: tuple[int, int], count: int, ending: str) -> list[Path]:
    """Save parts of a photograph at `size` (H, W); return the files."""
    folder.mkdir(parents=True)
    whole = Image.open(PHOTOGRAPH).convert("RGB")
    paths = []
    for i in range(count):
        share = 0.6 + 0.4 * i / count
        part = whole.crop((0, 0, round(whole.width * share), round(whole.height * share)))
        paths.append(folder / f"{i}{ending}")
        part.resize(size[::-1], Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def pose_data(folder: Path, size: tuple[int, int], images: int, files: int) -> datasets.KeypointDataset:
    """Return `images` persons in JPEG pictures, with boxes of about half a picture."""
    paths = save_pictures(folder, size, files, ".jpg")
    draw = np.random.default_rng(0)
    rows = []
    for i in range(images):
        sides = draw.uniform(0.4, 0.7, 2) * size[::-1]
        corner = draw.uniform(0, 1, 2) * (np.array(size[::-1]) - sides)
        points = corner + sides * draw.uniform(0.05, 0.95, (17, 2))
        visible = (draw.random(17) < 0.8).astype(np.float64)
        box = (*corner.tolist(), *sides.tolist())
        rows.append(KeypointRow(str(paths[i % files]), str(i), points, visible, box))
    dataset = datasets.KeypointDataset(COCO.names, flip_pairs=COCO.pairs, upper_body=datasets.COCO_UPPER_BODY)
    return dataset.fill(rows, str(folder))


def pose_crops(size: tuple[int, int]) -> datasets.KeypointCrops:
    """Return the authors' crops of COCO, without half bodies, which the contender lacks."""
    return datasets.KeypointCrops(
        size, (size[0] // 4, size[1] // 4), flip_pairs=COCO.pairs,
        augmentation=datasets.BoxAugmentation(half_body_probability=0),
    )  # fmt: skip


def segmentation_data(folder: Path, size: tuple[int, int], images: int, files: int) -> datasets.SegmentationDataset:
    """Return `images` PNG pictures with masks of 19 classes in blocks."""
    paths = save_pictures(folder / "pictures", size, files, ".png")
    masks = []
    (folder / "masks").mkdir()
    for i, path in enumerate(paths):
        blocks = np.random.default_rng(i).integers(0, 19, (12, 16), dtype=np.uint8)
        masks.append(folder / "masks" / path.name)
        Image.fromarray(blocks).resize(size[::-1], Image.Resampling.NEAREST).save(masks[-1])
    chosen = [(str(paths[i % files]), str(masks[i % files]), "") for i in range(images)]
    return datasets.SegmentationDataset(chosen, 19)


def one_pass(loader: DataLoader[Any], made: Callable[[Any], Any]) -> list[torch.Tensor]:
    """Make the inputs of all batches; return a number of the last, so that a pass has a result."""
    for batch in loader:
        inputs = made(batch)
    return [inputs[0].shape[0] * torch.ones(())]


def prepare(
    dataset: Dataset[Any], collate: Any, made: Callable[[Any], Any], batch: int, workers: int, device: torch.device
) -> Call:
    """Return a pass over a data set, whose workers stay alive."""
    loader = DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, collate_fn=collate, drop_last=True,
        persistent_workers=workers > 0, pin_memory=device.type == "cuda",
    )  # fmt: skip
    return partial(one_pass, loader, made)


@pytest.mark.parametrize("task", SIZES)
def bench_input_pipeline(benchmark: BenchmarkFixture, session: Session, tmp_path: Path, task: str) -> None:
    size, crop = SIZES[task][session.scale] if session.measuring else ((48, 64), (32, 32))
    batch, passes, workers = (16, 10, max(1, torch.get_num_threads())) if session.measuring else (2, 1, 0)
    images = batch * passes
    files = FILES if session.measuring else 2
    generator, device = torch.Generator().manual_seed(0), session.device
    if task == "pose":
        dataset, crops = pose_data(tmp_path / "data", size, images, files), pose_crops(crop)
        own: tuple[Any, Any] = dataset, datasets.collate_keypoints
        contender: Dataset[Any] = NumpyKeypoints(dataset, crops)

        def made(given: Any) -> Any:
            inputs = crops(given.to(device, non_blocking=True), generator)
            return inputs.images, inputs.targets, inputs.weights
    else:
        masks = segmentation_data(tmp_path / "data", size, images, files)
        cuts = datasets.SegmentationCrops(crop, max(size))
        own, contender = (masks, datasets.CollateSegmentation(masks.ignore_label)), NumpySegmentation(masks, cuts)

        def made(given: Any) -> Any:
            inputs = cuts(given.to(device, non_blocking=True), generator)
            return inputs.images, inputs.labels

    def moved(given: Any) -> Any:
        return [part.to(device, non_blocking=True) for part in given]

    entries = {
        "numpy in workers": Entry(
            partial(prepare, contender, None, moved, batch, workers, device), unavailable=UNAVAILABLE
        ),
        "hrnet_fast": Entry(partial(prepare, *own, made, batch, workers, device)),
    }
    what = f"{task} {size[0]}x{size[1]} to {crop[0]}x{crop[1]} batch {batch}"
    params = {"images": images, "batch": batch, "workers": workers}
    case = Case("input pipeline", what, f"{images} images", torch.float32, params)
    medians = session.time_networks(benchmark, case, entries, seconds=30, rounds=(3, 9))
    benchmark.extra_info |= {f"{name} images/s": round(images / seconds, 1) for name, seconds in medians.items()}
