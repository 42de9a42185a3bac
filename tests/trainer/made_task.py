"""A small task for tests of the loop: made pictures, a tiny HRNet or a layer, an evaluation of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_networks import tiny_config
from torch import Tensor, nn
from torch.utils.data import Dataset

import hrnet_fast as hf
from hrnet_fast.datasets import SkippedSample
from hrnet_fast.errors import DatasetError
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.recipes.recipe import (
    DataRecipe,
    EvaluationRecipe,
    LoopRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
)
from hrnet_fast.trainer import Callback


@dataclass(frozen=True)
class Sample:
    number: int
    image: Tensor
    path: str


class Pictures(Dataset[Any]):
    """`count` pictures that follow from their numbers, with some noise at each reading.

    Args:
        count: of pictures.
        broken: numbers that are skipped.
        failing: numbers whose reading raises, with the error's type.
        dead: numbers whose reading kills the process.
        nan: numbers of pictures of NaN.
    """

    def __init__(
        self,
        count: int = 12,
        size: int = 32,
        dtype: torch.dtype = torch.float32,
        broken: Sequence[int] = (),
        failing: dict[int, type[Exception]] | None = None,
        dead: Sequence[int] = (),
        nan: Sequence[int] = (),
        noise: float = 0.1,
    ) -> None:
        self.count, self.size, self.dtype, self.noise = count, size, dtype, noise
        self.broken, self.failing, self.dead, self.nan = broken, failing or {}, dead, nan
        self.samples = [(f"picture_{k}.png", 0) for k in range(count)]  # as torchvision's data sets have them

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample | SkippedSample:
        path = f"picture_{index}.png"
        if index in self.broken:
            return SkippedSample(path, "", f"{path} is broken")
        if index in self.failing:
            kind = self.failing[index]
            raise DatasetError(f"{path}: is broken", path=path) if kind is DatasetError else kind("no such pixels")
        if index in self.dead:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, self.size, self.size, generator=generator, dtype=self.dtype)
        image += self.noise * torch.rand(3, self.size, self.size, dtype=self.dtype)  # the process's own generator
        return Sample(index, image if index not in self.nan else image * float("nan"), path)


@dataclass(frozen=True)
class Batch:
    images: Tensor
    paths: tuple[str, ...]
    rows: tuple[str, ...]
    skipped: tuple[SkippedSample, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        return Batch(self.images.to(device, non_blocking=non_blocking), self.paths, self.rows, self.skipped)

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.paths, self.rows, self.skipped)


def collate(samples: Sequence[Any]) -> Batch:
    kept = [one for one in samples if isinstance(one, Sample)]
    skipped = tuple(one for one in samples if isinstance(one, SkippedSample))
    return Batch(torch.stack([one.image for one in kept]), tuple(s.path for s in kept), ("",) * len(kept), skipped)


@dataclass
class MadeTask:
    """Heatmaps of a tiny HRNet towards the mean of the channels, or a classifier with dropout.

    Attributes:
        augment: noise from the loop's generator on the inputs.
        network: ``"layers"``, or ``"hrnet"`` of two stages, or a ``"whole"`` one.
        family: of a checkpoint that the network would have begun from.
    """

    train: Pictures = field(default_factory=Pictures)
    val: Pictures | None = None
    augment: float = 0.0
    network: str = "layers"
    family: str | None = None
    figures: list[float] = field(default_factory=list)
    best: str = "score"
    higher_is_better: bool = True
    collate: Callable[[Sequence[Any]], Any] = collate
    evaluations: int = 0

    def make_model(self) -> nn.Module:
        config = tiny_config("v1", num_outputs=1)
        if self.network == "hrnet":
            config = config.override(stages=config.stages[:2])
        model: nn.Module = hf.HRNet(config, impl="reference")
        model.family = self.family
        if self.network == "layers":
            model = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 1)
            )
        return model.to(self.train.dtype)

    def make_loss(self) -> Callable[[Any, Any], Tensor]:
        return nn.MSELoss()

    def inputs(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = batch.images
        if self.augment:
            noise = torch.rand(images.shape, generator=generator, dtype=images.dtype)
            images = images + self.augment * noise.to(images.device, non_blocking=True)
        means = images.mean(1, keepdim=True)
        size = (images.shape[-1] - 3) // 4 + 1 if self.network == "layers" else images.shape[-1] // 4
        return images, nn.functional.adaptive_avg_pool2d(means, size)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "lr": 0.05, "weight_decay": 0.0}]

    def evaluate(
        self,
        network: Callable[[Tensor], Any],
        device: torch.device,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> EvaluationResult:
        assert self.val is not None
        assert isinstance(network, nn.Module)
        assert not network.training
        torch.rand(3)  # draws, as an evaluation with workers does
        images = torch.stack([self.val[k].image for k in range(len(self.val))])  # type: ignore[union-attr]
        if progress is not None:
            progress(len(images), len(images))
        score = float(network(images.to(device)).mean())
        if self.figures:
            score = self.figures[min(self.evaluations, len(self.figures) - 1)]
        self.evaluations += 1
        return EvaluationResult({"score": score}, (), len(images))


def recipe(**changes: Any) -> Recipe:
    """Return a recipe of three epochs; `changes` are fields of its loop, or of its other parts by their names."""
    optimizer = {"kind": "sgd", "lr": 0.05} | changes.pop("optimizer", {})
    schedule = {"kind": "poly", "warmup_iterations": 2} | changes.pop("schedule", {})
    data = {"workers": changes.pop("workers", 0), "skip_broken": changes.pop("skip_broken", False)}
    evaluation = changes.pop("evaluation", {})
    return Recipe(
        task="segmentation",
        description="made",
        model=ModelRecipe("hrnetv2_w18_seg"),
        data=DataRecipe("mask_folders", {"images": "images", "masks": "masks", "num_classes": 3}, **data),
        inputs={},
        loss={"kind": "pixel_cross_entropy"},
        optimizer=OptimizerRecipe(**optimizer),
        schedule=ScheduleRecipe(**schedule),
        loop=LoopRecipe(**({"epochs": 3, "batch_size": 4} | changes)),
        evaluation=EvaluationRecipe(**({"metric": "miou"} | evaluation)),
    )


class At(Callback):
    """Calls a function behind an update, or at a record of a kind.

    Args:
        when: an iteration, or a kind of record.
        call: what to do then.
    """

    def __init__(self, when: int | str, call: Callable[[], Any]) -> None:
        self.when, self.call = when, call

    def iteration(self, done: int, total: int) -> None:
        if done == self.when:
            self.call()

    def record(self, record: Any) -> None:
        if record["kind"] == self.when:
            self.call()
