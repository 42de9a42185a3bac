"""The catalogue, YAML, overrides, and errors that name the field, its value and what is accepted."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hrnet_fast as hf
from hrnet_fast import ConfigError
from hrnet_fast.recipes import ModelRecipe, Recipe, get_recipe, list_recipes, recipe_description
from hrnet_fast.recipes.model_options import describe_network, detector_config, network_config

NAMES = list_recipes()


@pytest.mark.slow
def test_every_recipe_of_the_catalogue_is_valid_and_survives_yaml(tmp_path: Path) -> None:
    assert {name.partition("/")[0] for name in NAMES} == {"paper", "modern", "small"}
    for name in NAMES:
        recipe = get_recipe(name)
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe.to_yaml())
        assert get_recipe(file) == recipe, name
        assert recipe.description == recipe_description(name)
        assert 0 < len(recipe.description) <= 120
        assert "\n" not in recipe.description


def test_names_are_found_by_pattern_and_suggested() -> None:
    small = ("bccd", "bccd_fcos", "camvid", "cells", "faces", "mouse")
    assert list_recipes("small/*") == [f"small/{name}" for name in small]
    with pytest.raises(ConfigError, match=r"is called 'paper/pose_w32_cocoo'\. Near: paper/pose_w32_coco"):
        get_recipe("paper/pose_w32_cocoo")
    with pytest.raises(ConfigError, match="there is no file"):
        get_recipe("mine.yaml")


def test_quirks_of_the_authors_are_named_fields() -> None:
    pose = get_recipe("paper/pose_w32_coco")
    assert pose.optimizer.weight_decay == 0
    assert pose.inputs["augmentation"]["upper_body_probability"] == pytest.approx(0.6915, abs=1e-4)
    assert not pose.schedule.before_epoch
    pixels = get_recipe("paper/seg_w48_cityscapes")
    assert pixels.loss["kind"] == "pixel_cross_entropy"
    assert len(pixels.loss["class_weights"]) == 19
    assert (pixels.evaluation.average, pixels.schedule.delay, pixels.loop.keep_last_batch) == ("exp", 1, False)
    assert get_recipe("paper/seg_w48_cityscapes_ocr").loss["output_weights"] == (0.4, 1.0)
    assert get_recipe("paper/seg_w48_pascal_context_ocr").optimizer.head_lr_factor == 10
    face = get_recipe("paper/face_w18_wflw")
    assert face.evaluation.whole_pixels
    assert face.loss == {"kind": "landmark_mse"}


def test_the_average_of_weights_decays_as_torchvisions() -> None:
    loop = get_recipe("modern/cls_w18_imagenet").loop
    assert loop.ema is not None
    # references/classification/train.py: --model-ema-decay 0.99998, applied every --model-ema-steps 32 updates.
    share = (1 - 0.99998) * loop.batch_size * 32 / loop.epochs
    assert loop.ema**32 == pytest.approx(1 - share, abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("optimizer.lr=5e-4", ("optimizer", "lr"), 5e-4),  # YAML 1.1 reads a text
        ("loop.graph=off", ("loop", "graph"), "off"),  # and here a boolean
        ("loop.clip_norm=null", ("loop", "clip_norm"), None),
        ("schedule.milestones=[3, 5]", ("schedule", "milestones"), [3, 5]),
        ("inputs.augmentation.rotation=30", ("inputs", "augmentation", "rotation"), 30.0),
        ("inputs.colors.brightness=0.2", ("inputs", "colors", "brightness"), 0.2),
        ("inputs.augmentation=null", ("inputs", "augmentation"), None),
        ("loss=keypoint_ohkm", ("loss", "top_k"), 8),
        ("evaluation.metric=pck", ("evaluation", "metric_options"), {}),
        ("data.train.category=person", ("data", "train", "category"), "person"),
        ("model.options.bn_momentum=0.05", ("model", "options", "bn_momentum"), 0.05),
    ],
)
def test_overrides(setting: str, path: tuple[str, ...], value: object) -> None:
    found = get_recipe("paper/pose_w32_coco").override(setting).to_dict()
    for name in path:
        found = found[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.rate=1", r"optimizer.rate is no field; accepted are kind, lr, weight_decay, momentum"),
        ("inputs.augmentation.rotatoin=3", r"Did you mean inputs.augmentation.rotation\?"),
        ("inputs.colors.hew=3", r"inputs.colors.hew is no field; accepted are .*Did you mean inputs.colors.hue\?"),
        ("data.train.imags=x", r"Did you mean data.train.images\?"),
        ("data.train.images=3", "data.train.images=3; accepted is a text"),
        ("data.train.narrow_boxes=3", "data.train.narrow_boxes=3; accepted is true or false"),
        ("data.train.flip_pairs=[3]", r"data.train.flip_pairs\[0\]=3; accepted is a list"),
        ("data.train.category=3", "data.train.category=3; accepted is a text, or null"),
        ("optimizr.lr=1", r"Did you mean optimizer\?"),
        ("optimizer.lr.x=1", "optimizer.lr is 0.001 and has no fields"),
        ("optimizer.lr", "accepted is field=value"),
        ("optimizer.lr=[", "is no YAML value"),
        ("optimizer.lr=fast", "optimizer.lr='fast'; accepted is a number"),
        ("optimizer.lr=0", "optimizer.lr=0.0; accepted are numbers above 0"),
        ("optimizer.lr=.nan", "optimizer.lr=nan; accepted is a number"),
        ("optimizer.betas=[0.9]", "accepted is a list of 2 values"),
        ("optimizer.kind=adma", "accepted are 'adam', 'adamw', 'sgd'. Did you mean 'adam'"),
        ("optimizer.nesterov=true", "kind: sgd"),
        ("optimizer.momentum=0.5", "momentum=0.5: kind: adam does not use it; .* default 0.9, or take kind: sgd"),
        ("schedule.power=1", "power=1.0: kind: step does not use it; .* default 0.9, or take kind: poly"),
        ("schedule.least=0.1", "least=0.1: kind: step does not use it; .*or take kind: poly or cosine"),
        ("optimizer.nesterov=1", "optimizer.nesterov=1; accepted is true or false"),
        ("loop.epochs=2.5", "loop.epochs=2.5; accepted is an integer"),
        ("loop.epochs=0", "loop.epochs=0; accepted are numbers from 1"),
        ("loop.accumulate=3", "batch_size=128 is no multiple of loop.accumulate=3"),
        ("loop.ema=1", "numbers from 0 to below 1"),
        ("loop.dtype=half", "accepted are 'float32', 'bfloat16', 'float16'"),
        ("schedule.milestones=[5, 3]", "accepted are ascending epochs"),
        ("data.hold_out=4", "beside data.val"),
        ("data.cache=8 GB", "data.cache='8 GB'; accepted are 'off' and limits such as '8 GiB'"),
        ("data.cache_folder=/tmp", "cache_folder='/tmp' with data.cache=off"),
        ("data.layout=cityscapes", "data.layout of task pose='cityscapes'"),
        ("inputs.sigma=-1", "sigma=-1.0 must be positive"),
        ("inputs.augmentation.scale=1.5", "scale=1.5; accepted are numbers from 0 to 1"),
        ("loss.weighted=yes please", "loss.weighted='yes please'; accepted is true or false"),
        ("loss=cross_entropy", "loss.kind of task pose='cross_entropy'"),
        ("model.name=hrnetv1_w33_pose", "Near: hrnetv1_w32_pose"),
        ("model.name=hrnet_w18_c", "has the head 'c'; the task pose trains v1"),
        ("model.options.widht=3", "unknown option"),
        ("model.options.key_channels=7", "model.options.key_channels: given, but without effect on this network"),
        ("model.options.align_corners=true", "model.options.align_corners: given, but without effect"),
        ("evaluation.window=[3, 3]", "the task pose does not use it"),
        ("evaluation.metric_options.oks_treshold=1", r"Did you mean evaluation.metric_options.oks_threshold\?"),
        ("evaluation.metric=miou", "evaluation.metric of task pose='miou'"),
        ("task=depth", "task='depth'; accepted are 'pose'"),
    ],
)
def test_wrong_overrides_say_what_is_accepted(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_recipe("paper/pose_w32_coco").override(setting)


def test_options_of_a_detector_are_set_at_every_depth() -> None:
    for name in ("paper/det_htc_w48_20e", "small/bccd"):
        settings = "model.options.roi.score_threshold=0.1", "model.options.rpn.anchors.ratios=[1]"
        found = get_recipe(name).override(*settings)
        config = detector_config(found.model, 3)
        assert config.roi is not None
        assert config.rpn is not None
        assert (config.roi.score_threshold, config.rpn.anchors.ratios) == (0.1, (1,))
    for setting, message in (
        ("rpn.anchors.ratois=[1]", r"Did you mean model.options.rpn.anchors.ratios\?"),
        ("rpm.channels=3", "rpm"),
        ("num_outputs=7", "num_outputs: given, but without effect"),
        ("key_channels=5", "key_channels: given, but without effect"),
        ("dropout=0.5", "dropout: given, but without effect"),
        ("num_classes=9", "num_classes=9: the data decides"),
        ("norm.foo=3", "model.options: .*foo"),
        ("stages.foo=3", "accepted is a list of mappings"),
    ):
        with pytest.raises(ConfigError, match=message):
            get_recipe("small/bccd").override(f"model.options.{setting}")


def test_another_kind_resets_the_fields_that_it_does_not_use() -> None:
    pose, pixels = get_recipe("paper/pose_w32_coco"), get_recipe("paper/seg_w48_pascal_context")
    found = pose.override("schedule.kind=cosine", "optimizer.kind=sgd", "optimizer.momentum=0.5", "evaluation.flip=no")
    assert (found.schedule.milestones, found.optimizer.momentum, found.evaluation.shift) == ((), 0.5, None)
    found = get_recipe("paper/cls_w18_imagenet").override("optimizer.kind=adamw")
    assert (found.optimizer.nesterov, found.optimizer.momentum) == (False, 0.9)
    assert pixels.override("evaluation.window=null").evaluation.stride == 1
    for recipe, settings, message in (
        (pose, ("schedule.milestones=[3]", "schedule.kind=cosine"), r"milestones=\(3,\): kind: cosine does not use it"),
        (pose, ("evaluation.flip=false", "evaluation.shift=true"), "nothing uses it without evaluation.flip"),
        (pixels, ("evaluation.window=null", "evaluation.pad_windows=true"), "without evaluation.window"),
        (pixels, ("optimizer.betas=[0.8, 0.9]",), "kind: sgd does not use it; .*or take kind: adam or adamw"),
    ):
        with pytest.raises(ConfigError, match=message):
            recipe.override(*settings)


def test_a_file_can_change_another_recipe(tmp_path: Path) -> None:
    (tmp_path / "longer.yaml").write_text(
        "base: paper/pose_w32_coco\nloop: {epochs: 300}\nloss: {kind: keypoint_ohkm}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "base: longer.yaml\ndescription: mine\ninputs: {augmentation: {rotation: 20}}\n"
    )
    recipe, original = get_recipe(tmp_path / "mine.yaml"), get_recipe("paper/pose_w32_coco")
    assert (recipe.loop.epochs, recipe.loop.batch_size, recipe.description) == (300, 128, "mine")
    assert recipe.loss == {"kind": "keypoint_ohkm", "weighted": True, "factor": 1.0, "top_k": 8}
    assert recipe.inputs["augmentation"] == original.inputs["augmentation"] | {"rotation": 20.0}


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text, message in (
        ("- 1\n", "accepted is a recipe, a mapping"),
        ("a: [", "cannot be read as YAML"),
        ("base: a.yaml\n", "leads back to itself"),
        ("base: b\n", "No recipe is called 'b'"),
        ("MODEL: {NAME: pose_hrnet}\n", "from_authors_config"),
        ("task: pose\n", "description, model, data, inputs, loss, optimizer, schedule, loop, evaluation missing"),
        ("base: paper/pose_w32_coco\nloop: 3\n", "loop: 3 given; accepted is a mapping of epochs"),
        ("base: paper/pose_w32_coco\nlop: {}\n", r"lop is no field; .*Did you mean loop\?"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            get_recipe(file)
    with pytest.raises(ConfigError, match="accepted is a mapping"):
        Recipe.from_dict([1])  # type: ignore[arg-type]


def test_the_table_of_the_documents_is_the_catalogue() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    rows = [
        line.split("|")[1:3] for line in page.splitlines() if line.startswith(("| `paper/", "| `modern/", "| `small/"))
    ]
    assert {name.strip(" `"): text.strip() for name, text in rows} == {n: recipe_description(n) for n in NAMES}


def test_names_and_descriptions_need_no_torch() -> None:
    code = "import sys, hrnet_fast.recipes as r; r.recipe_description('small/mouse'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_network_has_a_section() -> None:
    others = {
        "v1": hf.HRNetConfig.make(20, "v1", 9, num_modules=(1, 2, 3), bn_momentum=0.05),
        "ocr": hf.get_config("hrnetv2_w48_seg_ocr").override(channels=256, dropout=0.1, ocr_outputs="both"),
        "face": hf.HRNetConfig.make(18, "face", 5, block="bottleneck", norm_kind="gn"),
    }
    named = {n: hf.get_config(n) for n in hf.list_models() if not n.startswith("higher")}
    for name, config in (named | others).items():
        section = describe_network(config)
        plain = ModelRecipe(**yaml.safe_load(yaml.safe_dump(dataclasses.asdict(section))))
        assert network_config(plain, config.head.num_outputs) == config, name
        assert (section.options == {}) == (name in named), name


def test_yaml_of_a_recipe_is_plain() -> None:
    text = get_recipe("paper/seg_w48_cityscapes_ocr").to_yaml()
    assert "!!" not in text
    assert max(map(len, text.splitlines())) <= 160
    assert yaml.safe_load(text)["loss"]["output_weights"] == [0.4, 1.0]
