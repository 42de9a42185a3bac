"""Tasks of recipes: data, held-out pictures, networks and first weights, parameter groups, losses, evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import SIZES, tiny
from torch.utils.data import DataLoader

import hrnet_fast as hf
from hrnet_fast import ConfigError, DatasetError, evaluation
from hrnet_fast.errors import MissingPackageError
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.recipes import Recipe, get_recipe
from hrnet_fast.trainer.build_task import build_task

MOUSE = Path(__file__).parents[1] / "data" / "mouse"
TINY = {"width": 4, **{k: list(v) if isinstance(v, tuple) else v for k, v in SIZES.items()}}


def mouse(*settings: str, head: str = "v1") -> Recipe:
    """Return a recipe for the three frames of the tests, with a tiny network."""
    data = get_recipe("small/mouse").to_dict()
    data["model"]["options"] = {"head": head, **TINY}
    data["inputs"] |= {"input_size": [64, 64], "heatmap_size": [16, 16]}
    data["data"]["hold_out"] = 3
    return Recipe.from_dict(data).override("loop.batch_size=2", "data.workers=0", *settings)


def pixels(*settings: str, head: str = "v2", **loss: Any) -> Recipe:
    data = get_recipe("small/camvid").to_dict()
    data["model"] = {"name": "", "options": {"head": head, **TINY}}
    data["data"] |= {"train": {"split": "train"}, "val": None, "workers": 0}
    data["inputs"] |= {"crop_size": [32, 48], "base_size": 48}
    data["loss"] = {"kind": "pixel_cross_entropy", **loss}
    return Recipe.from_dict(data).override("loop.batch_size=2", *settings)


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("train", "trainannot"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.fromarray(generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "train" / f"{i}.png")
        labels = generator.integers(0, 12, (32, 48), dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / "trainannot" / f"{i}.png")
    return tmp_path


def test_pictures_are_held_out_of_a_list() -> None:
    task = build_task(mouse(), MOUSE, device="cpu")
    assert (len(task.train), len(task.val)) == (2, 1)
    assert task.val.picture(0) not in {task.train.picture(i) for i in range(2)}
    assert torch.equal(task.val[0].points, build_task(mouse("data.hold_out=0"), MOUSE, device="cpu").train[2].points)
    with pytest.raises(ConfigError, match="hold_out=4, but there are 3 pictures"):
        build_task(mouse("data.hold_out=4"), MOUSE, device="cpu")


def test_all_samples_of_a_picture_are_held_out_together(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text("path,n_x,n_y\na.png,3,4\nb.png,5,6\na.png,7,8\n")
    data = "{layout: points_csv, train: {table: t.csv}, hold_out: 2}"
    task = build_task(mouse(f"data={data}"), tmp_path, device="cpu")
    assert [Path(task.train.picture(i)).name for i in range(len(task.train))] == ["a.png", "a.png"]
    assert [Path(task.val.picture(i)).name for i in range(len(task.val))] == ["b.png"]


def test_a_step_of_each_keypoint_loss() -> None:
    for kind in ("keypoint_mse", "keypoint_ohkm", "landmark_mse"):
        task = build_task(mouse(f"loss={kind}"), MOUSE, device="cpu")
        model = task.make_model()
        assert (model.training, model.keypoints, model.config.head.num_outputs) == (True, "dark", 17)
        batch = next(iter(DataLoader(task.train, batch_size=2, collate_fn=task.collate)))
        images, (targets, weights) = task.inputs(batch, torch.Generator().manual_seed(0))
        maps = model(images)
        value = task.make_loss()(maps, (targets, weights))
        if kind == "keypoint_mse":
            expected = hf.training.losses.keypoint_mse(maps, targets, weights)
        elif kind == "keypoint_ohkm":
            expected = hf.training.losses.keypoint_ohkm(maps, targets, weights, top_k=8)
        else:
            expected = hf.training.losses.landmark_mse(maps, targets)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    unweighted = build_task(mouse("loss.weighted=false", "loss.factor=2"), MOUSE, device="cpu").make_loss()
    torch.testing.assert_close(unweighted(maps, (targets, weights)), (maps - targets).square().mean())


def test_mirrored_pairs_are_the_recipes_or_the_datas(tmp_path: Path) -> None:
    assert build_task(mouse(), MOUSE, device="cpu").crops.flip_pairs == ()
    given = build_task(mouse("inputs.flip_pairs=[[0, 1]]"), MOUSE, device="cpu")
    assert given.crops.flip_pairs == ((0, 1),)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,left_x,left_y,right_x,right_y\na.png,1,2,3,4\na.png,1,2,3,4\n")
    named = mouse("data={layout: points_csv, train: {table: t.csv}}", "inputs.flip_pairs=null")
    assert build_task(named, tmp_path, device="cpu").crops.flip_pairs == ((0, 1),)
    with pytest.raises(ConfigError, match="pictures are to be mirrored and flip_pairs is None"):
        build_task(mouse("inputs.flip_pairs=null", "inputs.augmentation.flip_probability=0.5"), MOUSE, device="cpu")


def test_recipes_that_do_not_fit_the_data(streets: Path) -> None:
    for recipe, folder, message in (
        (mouse("inputs.heatmap_size=[32, 32]"), MOUSE, r"heatmap_size=\[32, 32\], but the network gives \[16, 16\]"),
        (mouse("model.options.num_outputs=3"), MOUSE, "num_outputs=3, but the data has 17"),
        (mouse("loop.batch_size=4", "loop.keep_last_batch=false"), MOUSE, "there are 2 samples"),
        (mouse("evaluation.metric_options.thresholds=0.1"), MOUSE, "metric_options: PCK: thresholds"),
        (mouse("evaluation.metric_options.thresholds=[]"), MOUSE, "metric_options: PCK: thresholds"),
        (mouse("evaluation.metric_options.thresholds=[a]"), MOUSE, "metric_options: PCK: thresholds"),
        (mouse("evaluation.metric=coco"), MOUSE, "data.hold_out with evaluation.metric: coco"),
        (pixels(class_weights=[1.0, 2.0]), streets, "2 for 11 classes"),
        (pixels(output_weights=[1.0, 2.0]), streets, "one output: remove it"),
        (pixels(head="ocr"), streets, "two outputs: give two"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_task(recipe, folder, device="cpu").make_loss()
    with pytest.raises(DatasetError, match="no such"):
        build_task(mouse("data.train.table=none.csv"), MOUSE, device="cpu")
    with pytest.raises(ConfigError, match="accepted is a Recipe"):
        build_task({}, MOUSE, device="cpu")  # type: ignore[arg-type]


def test_parameter_groups(streets: Path) -> None:
    base = mouse("optimizer={kind: sgd, lr: 0.1, weight_decay: 0.01}")
    task = build_task(base, MOUSE, device="cpu")
    model = task.make_model()
    (group,) = task.parameter_groups(model)
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]

    changed = base.override("optimizer.head_lr_factor=10", "optimizer.decay_norms=false")
    task = build_task(changed, MOUSE, device="cpu")
    groups = task.parameter_groups(torch.nn.DataParallel(hf.accelerate(model)))
    found = {(g["lr"], g["weight_decay"]): {id(p) for p in g["params"]} for g in groups}
    assert set(found) == {(0.1, 0.01), (0.1, 0.0), (1.0, 0.01), (1.0, 0.0)}
    for name, parameter in model.named_parameters():
        key = (1.0 if name.startswith("final_layer") else 0.1, 0.01 if parameter.dim() > 1 else 0.0)
        assert id(parameter) in found[key], name
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the network is trainable"):
        task.parameter_groups(model)


@pytest.mark.slow
def test_first_weights_of_a_checkpoint(tmp_path: Path, streets: Path) -> None:
    trunk = tiny("c", 5)
    torch.save(trunk.state_dict(), tmp_path / "imagenet.pth")
    whole = tiny("v1", 17)
    torch.save(whole.state_dict(), tmp_path / "pose.pth")
    other = tiny("v1", 4)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    for file, source, heads in (("imagenet", trunk, False), ("pose", whole, True), ("other", other, False)):
        torch.manual_seed(0)
        model = build_task(mouse(), MOUSE, device="cpu", init=tmp_path / f"{file}.pth").make_model()
        state, given = model.state_dict(), source.state_dict()
        assert torch.equal(state["stage2.0.branches.0.0.conv1.weight"], given["stage2.0.branches.0.0.conv1.weight"])
        same = state["final_layer.weight"].shape == given.get("final_layer.weight", torch.zeros(0)).shape
        assert same == heads
        if heads:
            assert torch.equal(state["final_layer.weight"], given["final_layer.weight"])
        assert file in model.notes[-1]
    wide = build_task(mouse("model.options.width=8"), MOUSE, device="cpu", init=tmp_path / "pose.pth")
    with pytest.raises(hf.CheckpointError, match="trunk of this checkpoint is not the model's"):
        wide.make_model()


def test_segmentation_inputs_and_losses(streets: Path) -> None:
    weights = [0.5 + k / 10 for k in range(11)]
    task = build_task(pixels(head="ocr", class_weights=weights, output_weights=[0.4, 1.0]), streets, device="cpu")
    model, loss = task.make_model(), task.make_loss()
    assert (task.best, task.higher_is_better, model.keypoints) == ("miou", True, "none")
    batch = task.collate([task.train[0], task.train[1]])
    images, labels = task.inputs(batch, torch.Generator().manual_seed(0))
    outputs = model(images)
    large = [torch.nn.functional.interpolate(o, (32, 48), mode="bilinear", align_corners=True) for o in outputs]
    plain = torch.nn.CrossEntropyLoss(torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(loss(outputs, labels), 0.4 * plain(large[0], labels) + plain(large[1], labels))
    counted = build_task(pixels(divide_by="pixels"), streets, device="cpu").make_loss()
    share = (labels != 255).double().mean().item()
    logits = torch.randn(2, 11, 32, 48)
    plain = torch.nn.CrossEntropyLoss(ignore_index=255)
    torch.testing.assert_close(counted(logits, labels), plain(logits, labels) * share)


def classes(folder: Path, size: tuple[int, int] = (40, 48)) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4):
            place = folder / split / "ab"[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return folder


def cells(*settings: str) -> Recipe:
    data = get_recipe("small/cells").to_dict()
    data["model"] = {"name": "", "options": {"head": "c", **TINY}}
    return Recipe.from_dict(data).override(
        "inputs.input_size=[32, 32]", "inputs.resize=36", "data.workers=0", *settings
    )


def test_classification_crops_are_torchvisions(tmp_path: Path) -> None:
    task = build_task(cells("inputs.policy=trivial", "inputs.erase_probability=0.5"), classes(tmp_path), device="cpu")
    torch.manual_seed(0)
    first = task.collate([task.train[i] for i in range(3)])
    torch.manual_seed(0)
    again = task.collate([task.train[i] for i in range(3)])
    assert torch.equal(first.images, again.images)  # random numbers are torch's, so that a seed repeats a sample
    assert (first.images.dtype, list(first.images.shape), first.labels.tolist()) == (
        torch.uint8,
        [3, 3, 32, 32],
        [0, 0, 1],
    )
    images, labels = task.inputs(first, torch.Generator())
    torch.testing.assert_close(images, hf.datasets.normalize(first.images))
    assert task.make_loss()(torch.zeros(3, 2), labels).item() == pytest.approx(np.log(2))

    from torchvision.transforms import v2

    whole = torch.from_numpy(np.array(Image.open(task.val.picture(0)))).permute(2, 0, 1)
    middle = v2.Compose([v2.Resize(36, antialias=True), v2.CenterCrop((32, 32))])
    assert torch.equal(task.val[0].image, middle(whole))


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.4, 0.7)])
def test_mixed_pictures_are_torchvisions(alphas: tuple[float, float], tmp_path: Path) -> None:
    from torchvision.transforms import v2

    settings = (f"inputs.mixup_alpha={alphas[0]}", f"inputs.cutmix_alpha={alphas[1]}", "loss.label_smoothing=0.1")
    task = build_task(cells(*settings), classes(tmp_path), device="cpu")
    batch = task.collate([task.train[i] for i in range(4)])
    before = torch.get_rng_state()
    (images, shares), again = (task.inputs(batch, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, again[0])
    kinds = [v2.MixUp(alpha=alphas[0], num_classes=2)] if alphas[0] else []
    kinds += [v2.CutMix(alpha=alphas[1], num_classes=2)] if alphas[1] else []
    torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(3))))
    expected = v2.RandomChoice(kinds)(hf.datasets.normalize(batch.images), batch.labels)
    assert torch.equal(images, expected[0])
    assert torch.equal(shares, expected[1])
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    logits = torch.randn(4, 2)
    smooth = 0.9 * shares + 0.05
    plain = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.make_loss()(logits, shares), plain)
    with pytest.raises(ConfigError, match=r"mixup_alpha=-1\.0; accepted are numbers from 0"):
        cells("inputs.mixup_alpha=-1")
    with pytest.raises(ConfigError, match=r"loop.batch_size=4 with loop.accumulate=4: .* mix the pictures"):
        build_task(cells(*settings, "loop.batch_size=4", "loop.accumulate=4"), tmp_path, device="cpu")


def test_parameters_of_mixing_may_be_integers() -> None:
    crops = hf.datasets.ClassificationCrops(mixup_alpha=1, cutmix_alpha=1)
    mix = crops.mixing(2)
    assert mix is not None
    assert mix(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))[1].shape == (2, 2)


def test_broken_pictures_of_classes(tmp_path: Path) -> None:
    (classes(tmp_path) / "train" / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        build_task(cells(), tmp_path, device="cpu").train[0]
    task = build_task(cells("data.skip_broken=true"), tmp_path, device="cpu")
    batch = task.collate([task.train[0], task.train[1]])
    assert (len(batch), len(batch.skipped)) == (1, 1)
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(DatasetError, match=r"no classes \(Found no valid file for the classes c"):
        build_task(cells(), tmp_path, device="cpu")
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "c" / "x.png")
    with pytest.raises(ConfigError, match="3 classes and data"):
        build_task(cells(), tmp_path, device="cpu")


def test_classification_names_the_package_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path)
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match="pip install torchvision"):
        build_task(cells(), tmp_path, device="cpu")
    with pytest.raises(MissingPackageError, match="pip install torchvision"):
        hf.datasets.ClassificationCrops().transform(training=True)


@pytest.mark.parametrize("kind", ["keypoints", "segmentation", "classification"])
def test_evaluation_gets_what_the_recipe_says(
    kind: str, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def evaluator(*arguments: Any, **options: Any) -> EvaluationResult:
        calls.append((arguments, options))
        return EvaluationResult({}, (), 0)

    monkeypatch.setattr(evaluation, f"evaluate_{kind}", evaluator, raising=False)
    if kind == "keypoints":
        task = build_task(mouse("evaluation.metric_options={thresholds: [0.1]}"), MOUSE, device="cpu")
        assert (task.best, task.higher_is_better) == ("pck@0.1", True)
    elif kind == "segmentation":
        task = build_task(pixels("data.hold_out=2", "evaluation.best=pixel_accuracy"), streets, device="cpu")
        assert task.best == "pixel_accuracy"
    else:
        task = build_task(cells("evaluation.batch_size=3"), classes(tmp_path), device="cpu")
    network, device = torch.nn.Identity(), torch.device("cpu")
    assert task.evaluate(network, device, progress=print).figures == {}
    ((given_network, dataset, crops, settings, on), options) = calls[0]
    assert (given_network, dataset, crops, on) == (network, task.val, task.crops, device)
    assert settings.metric == task.recipe.evaluation.metric
    assert (options["workers"], options["progress"]) == (task.recipe.data.workers, print)
    assert options["batch_size"] == {"keypoints": 2, "segmentation": 2, "classification": 3}[kind]
    without = build_task(mouse("data.hold_out=0"), MOUSE, device="cpu")
    with pytest.raises(ConfigError, match="no data for evaluation"):
        without.evaluate(network, device)


def test_detections_are_evaluated_in_place_of_annotated_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    category = {"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye"]}
    person = {"id": 3, "image_id": 7, "category_id": 1, "bbox": [4, 4, 40, 40], "keypoints": [9, 9, 2, 20, 9, 2]}
    picture = {"id": 7, "file_name": "a.png", "width": 64, "height": 64}
    truth = {"images": [picture], "annotations": [person], "categories": [category]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    boxes = [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 30 + i, 30], "score": 0.5} for i in range(2)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    part = "{annotations: truth.json, images: .}"
    data = f"data={{layout: coco_keypoints, train: {part}, val: {part}}}"
    measured = "evaluation={metric: coco, detections: boxes.json, metric_options: {sigmas: [0.025, 0.025]}}"
    settings = (data, measured, "inputs.flip_pairs=null")
    task = build_task(mouse(*settings), tmp_path, device="cpu")
    assert (len(task.train), len(task.val), task.best) == (1, 2, "AP")
    assert task.val.annotation(1).box.tolist() == [0, 0, 31, 30]
    with pytest.raises(ConfigError, match="detections is for"):
        build_task(mouse("evaluation.detections=boxes.json"), MOUSE, device="cpu")
