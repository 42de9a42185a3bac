"""Ten steps of the authors' recipes: loss, optimizer and schedule written out plainly, against those of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import SIZES, enliven
from torch import Tensor, nn, optim
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.recipes import Recipe, get_recipe
from hrnet_fast.trainer.build_task import build_task
from hrnet_fast.trainer.processes import joined_processes
from hrnet_fast.trainer.schedule import Schedule
from hrnet_fast.trainer.step_runner import StepRunner

pytestmark = pytest.mark.slow
MOUSE = Path(__file__).parents[1] / "data" / "mouse"
STEPS, PER_EPOCH = 10, 2
# One learning rate at each step, loss of outputs and targets, and the optimizer that the authors make.
Rates = Callable[[int], float]
TINY: dict[str, Any] = {"width": 4, **{k: v for k, v in SIZES.items() if k != "stem_channels"}, "stem_channels": 8}


def changed(name: str, data: dict[str, Any], head: str, inputs: dict[str, Any], **changes: Any) -> Recipe:
    """Return a recipe of the catalogue for a tiny network and other data; optimizer and loss stay."""
    recipe = get_recipe(name).to_dict()
    options = {key: value for key, value in recipe["model"]["options"].items() if key == "bn_momentum"}
    sizes: dict[str, Any] = {"channels": 16, "key_channels": 8, "dropout": 0.0} if head == "ocr" else {}
    if head == "c":  # its widths are fixed, and grow with the branches
        sizes = {"num_modules": [1], "num_branches": [2]}
    recipe["model"] = {"name": "", "options": {"head": head, **TINY, **sizes, **options}}
    recipe["data"] = {"workers": 0, **data}
    recipe["inputs"] |= inputs
    recipe["loop"] |= {"epochs": STEPS // PER_EPOCH, "batch_size": 2, "sync_bn": False, "graph": "off"}
    for section, values in changes.items():
        recipe[section] |= values
    return Recipe.from_dict(recipe)


class InFloat64:
    """A task whose network, images and targets are in float64; its network has weights that keep signals alive."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def make_model(self) -> nn.Module:
        return enliven(self.task.make_model().double()).train()

    def make_loss(self) -> nn.Module:
        return self.task.make_loss().double()

    def inputs(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Any]:
        images, targets = self.task.inputs(batch, generator)
        wide = tuple(t.double() for t in targets) if isinstance(targets, tuple) else targets
        return images.double(), wide


def steps_of_the_loop(task: Any, batches: list[Any], accelerate: str) -> list[float]:
    recipe = task.recipe.override(f"loop.accelerate={accelerate}")
    schedule = Schedule(recipe.schedule, PER_EPOCH, recipe.loop.epochs)
    losses = []
    with joined_processes("cpu") as processes:
        runner = StepRunner(task, recipe, processes)
        assert runner.choices.accelerate == (accelerate == "on")
        for iteration, (images, targets) in enumerate(batches):
            runner.set_rate(schedule.factor(iteration))
            losses.append(runner.run(images, targets, 0)[0].item())
    if accelerate == "on":
        assert "fused" in str(hf.explain(runner.model))
    return losses


def steps_of_the_authors(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    make: Callable[[nn.Module], optim.Optimizer],
    rate: Rates,
    batches: list[Any],
    factors: tuple[float, ...] = (1.0,),
) -> list[float]:
    optimizer = make(model)
    losses = []
    for iteration, (images, targets) in enumerate(batches):
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate(iteration) * factor
        value = loss(model(images), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def check(task: Any, *plain: Any, **options: Any) -> list[float]:
    """Compare the loop's losses, plain and accelerated, with the authors'."""
    task = InFloat64(task)
    generator = torch.Generator().manual_seed(3)
    samples = [task.train[i % len(task.train)] for i in range(2 * STEPS)]
    batches = [task.inputs(task.collate(samples[2 * i : 2 * i + 2]), generator) for i in range(STEPS)]
    expected = steps_of_the_authors(task.make_model(), *plain, batches, **options)
    assert all(map(math.isfinite, expected))
    assert abs(expected[-1] - expected[0]) > 1e-6 * expected[0]
    for accelerate in ("off", "on"):
        assert steps_of_the_loop(task, batches, accelerate) == pytest.approx(expected, rel=1e-9, abs=0)
    return expected


def test_pose_steps_are_the_authors() -> None:
    table = {"layout": "deeplabcut", "train": {"table": "CollectedData.csv"}, "val": None}
    inputs = {"input_size": [64, 64], "heatmap_size": [16, 16], "flip_pairs": [[0, 1]]}
    metric = {"metric": "pck"}
    schedule = {"milestones": [2, 4]}
    recipe = changed("paper/pose_w32_coco", table, "v1", inputs, evaluation=metric, schedule=schedule)
    task = build_task(recipe, MOUSE, device="cpu")

    def loss(heatmaps: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        maps, visible = targets
        each = [
            0.5 * F.mse_loss(heatmaps[:, k] * visible[:, k, None, None], maps[:, k] * visible[:, k, None, None])
            for k in range(heatmaps.shape[1])
        ]
        return torch.stack(each).mean()

    def rate(iteration: int) -> float:
        return 1e-3 * 0.1 ** sum(iteration // PER_EPOCH >= epoch for epoch in (2, 4))

    # The configuration's weight decay is not given to Adam.
    check(task, loss, lambda model: optim.Adam(model.parameters(), lr=1e-3), rate)


def write_pictures(folder: Path, classes: int) -> None:
    generator = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(4):
        pixels = generator.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        labels = generator.integers(0, classes + 1, (16, 24), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        labels[labels == classes] = 255
        Image.fromarray(labels).save(folder / "masks" / f"{i}.png")


@pytest.mark.parametrize("name", ["seg_w48_cityscapes", "seg_w48_cityscapes_ohem", "seg_w48_cityscapes_ocr"])
def test_segmentation_steps_are_the_authors(name: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, 19)
    ocr, hard = name.endswith("ocr"), name.endswith("ohem")
    folders = {
        "layout": "mask_folders",
        "train": {"images": "images", "masks": "masks", "num_classes": 19},
        "val": None,
    }
    inputs = {"crop_size": [64, 96], "base_size": 96}
    few = {"loss": {"min_kept": 300}} if hard else {}
    task = build_task(changed(f"paper/{name}", folders, "ocr" if ocr else "v2", inputs, **few), tmp_path, device="cpu")
    weights = torch.tensor(
        [0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
         1.0865, 1.0955, 1.0865, 1.1529, 1.0507]
    ).double()  # fmt: skip

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        large = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=ocr)
        if not hard:
            return F.cross_entropy(large, labels, weights, ignore_index=255)
        pixels = F.cross_entropy(large, labels, weights, ignore_index=255, reduction="none")
        counted = labels != 255
        own = large.softmax(1).gather(1, labels.where(counted, 0)[:, None])[:, 0][counted]
        threshold = max(own.sort().values[min(300, len(own) - 1)].item(), 0.9)
        return pixels[counted][own < threshold].mean()

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        if not ocr:
            return cross_entropy(outputs, labels)
        return 0.4 * cross_entropy(outputs[0], labels) + cross_entropy(outputs[1], labels)

    def rate(iteration: int) -> float:  # the rate is set after a step, for the next one
        return 0.01 * (1 - max(0, iteration - 1) / STEPS) ** 0.9

    def make(model: nn.Module) -> optim.Optimizer:
        return optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    check(task, loss, make, rate)


def test_the_head_of_the_ocr_branch_learns_ten_times_as_fast(tmp_path: Path) -> None:
    """PASCAL-Context: the keywords ``cls``, ``aux`` and ``ocr`` in a parameter's name."""
    write_pictures(tmp_path, 59)
    folders = {
        "layout": "mask_folders",
        "train": {"images": "images", "masks": "masks", "num_classes": 59},
        "val": None,
    }
    inputs = {"crop_size": [64, 96], "base_size": 96}
    recipe = changed("paper/seg_w48_pascal_context_ocr", folders, "ocr", inputs)
    task = build_task(recipe, tmp_path, device="cpu")

    def loss(outputs: Any, labels: Tensor) -> Tensor:
        large = [F.interpolate(out, labels.shape[1:], mode="bilinear", align_corners=True) for out in outputs]
        auxiliary, main = (F.cross_entropy(out, labels, ignore_index=255) for out in large)
        return 0.4 * auxiliary + main

    def make(model: nn.Module) -> optim.Optimizer:
        head = [p for name, p in model.named_parameters() if any(word in name for word in ("cls", "aux", "ocr"))]
        trunk = [p for p in model.parameters() if all(p is not other for other in head)]
        return optim.SGD([{"params": trunk}, {"params": head}], lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def rate(iteration: int) -> float:
        return 1e-3 * (1 - max(0, iteration - 1) / STEPS) ** 0.9

    check(task, loss, make, rate, factors=(1.0, 10.0))


def test_face_steps_are_the_authors() -> None:
    table = {"layout": "deeplabcut", "train": {"table": "CollectedData.csv"}, "val": None}
    inputs = {"input_size": [64, 64], "heatmap_size": [16, 16], "flip_pairs": [[0, 1]]}
    recipe = changed("paper/face_w18_wflw", table, "face", inputs, schedule={"milestones": [1, 3]})
    task = build_task(recipe, MOUSE, device="cpu")

    def loss(heatmaps: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        return nn.MSELoss()(heatmaps, targets[0])

    def rate(iteration: int) -> float:
        return 1e-4 * 0.1 ** sum(iteration // PER_EPOCH >= epoch for epoch in (1, 3))

    check(task, loss, lambda model: optim.Adam(model.parameters(), lr=1e-4), rate)


def test_classification_steps_are_the_authors(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for i in range(6):
        folder = tmp_path / "train" / f"class {i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    data = {"layout": "image_folder", "train": {"split": "train"}, "val": None}
    recipe = changed(
        "paper/cls_w18_imagenet",
        data,
        "c",
        {"input_size": [32, 32]},
        schedule={"milestones": [1, 3], "before_epoch": True},
    )
    torch.manual_seed(2)
    task = build_task(recipe, tmp_path, device="cpu")

    def rate(iteration: int) -> float:  # as the authors' code does with PyTorch from 1.1 on
        return 0.05 * 0.1 ** sum(iteration // PER_EPOCH + 1 >= epoch for epoch in (1, 3))

    def make(model: nn.Module) -> optim.Optimizer:
        return optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)

    check(task, nn.CrossEntropyLoss(), make, rate)
