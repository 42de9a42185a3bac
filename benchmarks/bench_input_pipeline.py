"""Input of training: decoded, cropped and normalised batches on the device, with heatmaps or labels.

Both contenders read the same files by the parts of the training loop's loader, with the same number of workers. This
package decodes and crops in the workers, and computes normalised inputs and targets for a whole batch; the contender
does everything for each sample in its workers, as the authors' data sets do. The record names the decoders that this
package had. With ``data.cache`` decoded pictures are mapped from files, which the first pass writes. A call is one pass
over all pictures; there is no training step beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader, Dataset, default_collate

import hrnet_fast
from benchmarks.harness import Case, Entry, Session
from benchmarks.numpy_loaders import UNAVAILABLE, NumpyKeypoints, NumpySegmentation
from hrnet_fast import datasets
from hrnet_fast.datasets.keypoint_dataset import KeypointRow
from hrnet_fast.datasets.picture_cache import PictureCache
from hrnet_fast.datasets.picture_decoding import jpeg_decoder, png_decoder
from hrnet_fast.keypoints import KEYPOINT_SETS
from hrnet_fast.recipes.recipe import LoopRecipe
from hrnet_fast.trainer.batches import CollateSamples, SeededSamples
from hrnet_fast.trainer.sampler import MicroBatches, MicroBatchKeys, TrainingOrder

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


@dataclass(frozen=True)
class Stacked:
    """A batch of the contender's tensors, as the loop takes it."""

    tensors: list[torch.Tensor]
    skipped: tuple[()] = ()

    def to(self, device: torch.device, non_blocking: bool = False) -> Stacked:
        return Stacked([part.to(device, non_blocking=non_blocking) for part in self.tensors])

    def pin_memory(self) -> Stacked:
        return Stacked([part.pin_memory() for part in self.tensors])


def stack(samples: Any) -> Stacked:
    return Stacked(default_collate(samples))


@dataclass(frozen=True)
class Samples:
    """What the loop asks of a task."""

    train: Dataset[Any]
    collate: Callable[..., Any]
    collate_crops: Callable[..., Any] | None = None


class Passes:
    """The batches of a training run without its steps: each call reads one epoch, by workers that stay alive.

    :class:`~hrnet_fast.trainer.batches.TrainingBatches` reads on behind an epoch's end, which would run during another
    contender's call: the loader here has its parts, and one epoch.
    """

    def __init__(self, task: Samples, made: Callable[..., Any], batch: int, workers: int, device: torch.device) -> None:
        count = len(task.train)  # type: ignore[arg-type]
        self.order = TrainingOrder(count, LoopRecipe(epochs=10**6, batch_size=batch))
        collate = CollateSamples(task.collate_crops or task.collate, task.collate_crops is not None)
        self.loader: DataLoader[Any] = DataLoader(
            SeededSamples(task.train), batch_sampler=self, num_workers=workers, collate_fn=collate,
            persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        )  # type: ignore[arg-type]  # fmt: skip
        self.made, self.device, self.first, self.generator = made, device, 0, torch.Generator()

    def __iter__(self) -> Iterator[MicroBatchKeys]:
        return islice(iter(MicroBatches(self.order, self.first)), self.order.iterations_per_epoch)

    def __call__(self) -> list[torch.Tensor]:
        for iteration, batch in enumerate(self.loader, self.first):
            self.generator.manual_seed(self.order.augmentation_seed(iteration, 0))
            inputs = self.made(batch.to(self.device, non_blocking=True), self.generator)
        self.first += self.order.iterations_per_epoch
        return [inputs[0].shape[0] * torch.ones(())]


def pose_inputs(inputs: datasets.KeypointInputs) -> tuple[torch.Tensor, ...]:
    return inputs.images, inputs.targets, inputs.weights


def pixel_inputs(inputs: datasets.SegmentationInputs) -> tuple[torch.Tensor, ...]:
    return inputs.images, inputs.labels


@pytest.mark.parametrize("task", SIZES)
def bench_input_pipeline(benchmark: BenchmarkFixture, session: Session, tmp_path: Path, task: str) -> None:
    size, crop = SIZES[task][session.scale] if session.measuring else ((48, 64), (32, 32))
    batch, passes, workers = (16, 10, max(1, torch.get_num_threads())) if session.measuring else (2, 1, 0)
    images = batch * passes
    files = FILES if session.measuring else 2
    common = (batch, workers, session.device)
    if task == "pose":
        dataset, crops = pose_data(tmp_path / "data", size, images, files), pose_crops(crop)
        own = Samples(dataset, datasets.collate_keypoints, crops.collate)
        made: Callable[..., Any] = lambda *given: pose_inputs(crops(*given))  # noqa: E731
        contender: Dataset[Any] = NumpyKeypoints(dataset, crops)
    else:
        masks = segmentation_data(tmp_path / "data", size, images, files)
        cuts = datasets.SegmentationCrops(crop, max(size))
        own = Samples(masks, datasets.CollateSegmentation(), cuts.collate)
        made = lambda *given: pixel_inputs(cuts(*given))  # noqa: E731
        contender = NumpySegmentation(masks, cuts)
    dataset_with_cache = copy.copy(own.train)
    dataset_with_cache.cache = PictureCache(tmp_path / "cache", 1 << 34)
    cached = replace(own, train=dataset_with_cache)
    entries = {
        "numpy in workers": Entry(
            partial(Passes, Samples(contender, stack), lambda given, _: given.tensors, *common), unavailable=UNAVAILABLE
        ),
        "hrnet_fast": Entry(partial(Passes, own, made, *common)),
        "hrnet_fast, data.cache": Entry(partial(Passes, cached, made, *common)),
    }
    what = f"{task} {size[0]}x{size[1]} to {crop[0]}x{crop[1]} batch {batch}"
    params = {"images": images, "batch": batch, "workers": workers}
    case = Case("input pipeline", what, f"{images} images", torch.float32, params)
    medians = session.time_networks(benchmark, case, entries, seconds=30, rounds=(3, 9))
    decoders = {"png": ("kornia-rs", png_decoder()), "jpeg": ("torchvision", jpeg_decoder())}
    benchmark.extra_info["decoders"] = {kind: name if used else "Pillow" for kind, (name, used) in decoders.items()}
    benchmark.extra_info |= {f"{name} images/s": round(images / seconds, 1) for name, seconds in medians.items()}
