"""Training of detectors: plain and accelerated steps, resumption, weights to begin with, the optimizer's groups."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from made_objects import detector_recipe, save_objects
from made_task import At
from run_states import assert_same_run
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import hrnet_fast as hf
from hrnet_fast.detection import Detector, total_loss
from hrnet_fast.recipes import Recipe
from hrnet_fast.trainer import read_log, train
from hrnet_fast.trainer.build_task import build_task
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.schedule import Schedule
from hrnet_fast.trainer.step_runner import StepRunner
from hrnet_fast.training.training_iteration import Arguments, MicroBatch, TrainingIteration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_objects(tmp_path_factory.mktemp("objects"))


def in_float64(recipe: Recipe, folder: Path) -> Any:
    """Return a task whose network and images have float64."""
    task = build_task(recipe, folder, device="cpu")
    make_model, inputs = task.make_model, task.inputs

    def doubled(batch: Any, generator: torch.Generator) -> Any:
        (images, *others), targets = inputs(batch, generator)
        return Arguments((images.double(), *others)), targets

    torch.manual_seed(0)
    model = make_model().double()
    task.make_model, task.inputs = lambda: model, doubled  # type: ignore[method-assign]
    return task


SGD = "optimizer={kind: sgd, lr: 0.02, momentum: 0.9, weight_decay: 0.01, bias_lr_factor: 2, decay_biases: false}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "htc", "fcos"])
def test_accelerated_steps_are_those_of_a_plain_loop(kind: str, objects: Path) -> None:
    """Ten updates in float64: a picture of nothing, crowds, mirrored ones; warm-up, clipping, rates of biases."""
    recipe = detector_recipe(kind, SGD, "loop.accelerate=on", "loop.clip_norm=2", "schedule.warmup_iterations=5")
    runner = StepRunner(in_float64(recipe, objects), recipe, Processes(CPU))
    assert runner.choices.accelerate
    assert not runner.choices.graph
    assert "depend on its data" in runner.choices.reasons["graph"]
    task = in_float64(recipe, objects)
    model = task.make_model()
    biases = [
        layer.bias
        for layer in model.modules()
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.bias is not None
    ]
    norms = [
        layer.bias for layer in model.modules() if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm)) and layer.affine
    ]
    others = [p for p in model.parameters() if all(p is not bias for bias in (*biases, *norms))]
    groups = [
        {"params": others},
        {"params": biases, "weight_decay": 0.0},
        {"params": norms, "weight_decay": 0.0},
    ]
    optimizer = optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=0.01)
    schedule = Schedule(recipe.schedule, 3, 2)
    batches = list(DataLoader(task.train, batch_size=2, collate_fn=task.collate)) * 4
    found, expected = [], []
    for i, batch in enumerate(batches[:10]):
        runner.set_rate(schedule.factor(i))
        loss, named = runner.run(*task.inputs(batch, torch.Generator().manual_seed(i)), 0)
        found.append(float(loss))
        assert sum(float(part) for name, part in named.items() if "loss" in name) == pytest.approx(float(loss))
        for group, rate in zip(optimizer.param_groups, (0.02, 0.04, 0.02), strict=True):
            group["lr"] = rate * schedule.factor(i)
        (images, targets, metas, generator), _ = task.inputs(batch, torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        total = total_loss(model.losses(images, targets, metas, generator))
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2)
        optimizer.step()
        expected.append(float(total.detach()))
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) == 10


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_uninterrupted_one(objects: Path, tmp_path: Path) -> None:
    """The boxes that a step trains on are drawn anew, to the bit; with micro-batches and an average of the weights."""
    recipe = detector_recipe("faster_rcnn", "loop.accumulate=2", "loop.ema=0.9")
    task = build_task(recipe, objects, device="cpu")
    whole = train(task, recipe, tmp_path / "whole", log_every=2)
    assert whole.finished
    train(task, recipe, tmp_path / "part", callbacks=[At(4, terminate)], log_every=2)
    torch.rand(5)
    assert train(
        build_task(recipe, objects, device="cpu"), recipe, tmp_path / "part", resume=True, log_every=2
    ).finished
    assert_same_run(tmp_path / "part", tmp_path / "whole")
    steps = [record for record in read_log(tmp_path / "whole" / "log.jsonl") if record["kind"] == "step"]
    assert set(steps[0]["losses"]) == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "acc", "loss_bbox"}
    for step in steps:
        assert sum(v for name, v in step["losses"].items() if "loss" in name) == pytest.approx(step["loss"], rel=1e-5)
    names = {"AP", "AP50", "AP/dark", "AP/bright"}
    assert names <= set(whole.evaluations["ema"].figures)


def test_distributed_training_takes_a_detectors_arguments(objects: Path, tmp_path: Path) -> None:
    """Pictures of nothing leave no parameter without a gradient, which the wrapper would refuse in the next step."""
    recipe = detector_recipe("mask_rcnn")
    task = build_task(recipe, objects, device="cpu")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(task.make_model())
        iteration = TrainingIteration(
            model, task.make_loss(), optim.SGD(model.parameters(), lr=0.01), dtype=None, accumulate=1, clip_norm=None,
            scaler=None, average=None,
        )  # fmt: skip
        empty = task.collate([task.train[1]])
        for _ in range(2):
            result = iteration.run(*task.inputs(empty, torch.Generator().manual_seed(0)), MicroBatch(True, True))
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        assert bool(result["loss"] > 0)
        assert float(result["loss_mask"]) == float(result["loss_bbox"]) == 0
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_first_weights(objects: Path, tmp_path: Path) -> None:
    """A detector of the same network, one of other classes, and a trunk."""
    config = build_task(detector_recipe(), objects, device="cpu").config
    torch.manual_seed(1)
    same, other = Detector(config), Detector(config.override(num_classes=4))
    trunk = {k.removeprefix("backbone."): v for k, v in same.state_dict().items() if k.startswith("backbone.")}
    for name, state, fits in (
        ("same", same.state_dict(), True),
        ("other", other.state_dict(), False),
        ("trunk", trunk, None),
    ):
        hf.save_checkpoint(state, tmp_path / f"{name}.pth")
        torch.manual_seed(0)
        task = build_task(detector_recipe(), objects, device="cpu", init=tmp_path / f"{name}.pth")
        found, plain = task.make_model().state_dict(), task.random_network().state_dict()
        source = other.state_dict() if name == "other" else same.state_dict()
        key = "rpn_head.rpn_conv.weight"
        assert torch.equal(found["backbone.conv1.weight"], source["backbone.conv1.weight"])
        assert torch.equal(found[key], source[key]) == (fits is not None)
        key = "roi_head.bbox_head.fc_cls.weight"
        assert torch.equal(found[key], same.state_dict()[key]) == (fits is True), name
        assert found[key].shape == plain[key].shape


def test_recipes_that_do_not_fit(objects: Path) -> None:
    for recipe, message in (
        (detector_recipe("mask_rcnn", "data.train.masks=false"), "give data.train masks: true"),
        (detector_recipe("htc", "data.train={annotations: train.json, images: train, masks: true}"), "semantic"),
        (detector_recipe("fcos", "data.val.classes=[dark]"), "1 classes and data.train 2"),
        (detector_recipe("fcos", "evaluation.best=mask_AP"), "best='mask_AP'; accepted are AP"),
        (detector_recipe("fcos", "loop.graph=on"), "its step is no graph"),
    ):
        with pytest.raises(hf.ConfigError, match=message):
            StepRunner(build_task(recipe, objects, device="cpu"), recipe, Processes(CPU))
    for setting, message in (
        ("model.options.rpn={channel: 8}", r"rpn\.channel is no field.*Did you mean model.options.rpn.channels"),
        ("model.options.fcos={channels: 8}", r"model\.options\.fcos: faster_rcnn has none"),
        ("model.options.roi={stages: [{}, {}]}", r"roi\.stages: 2 given; accepted is one mapping, or 1 in a list"),
        ("model.options.roi={stages: 5}", "accepted is a mapping of fc_channels"),
        ("model.options.widht=8", "widht"),
        ("model.name=yolo", "yolo"),
        ("inputs.picture={channel_order: rbg}", "accepted are 'rgb', 'bgr'"),
        ("evaluation.flip=true", "the task detection does not use it"),
        ("evaluation.metric_options.kind=segm", "kind is no field"),
        ("data.layout=voc_box", "Did you mean 'voc_boxes'"),
    ):
        with pytest.raises(hf.ConfigError, match=message):
            detector_recipe("faster_rcnn", setting)
