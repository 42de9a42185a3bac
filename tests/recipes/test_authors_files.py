"""The authors' yaml: files of the keys that matter here, against the catalogue; unknown keys and what no recipe has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hrnet_fast import ConfigError
from hrnet_fast.recipes import Recipe, from_authors_config, get_recipe
from hrnet_fast.trainer.build_task import build_task

MOUSE = Path(__file__).parents[1] / "data" / "mouse"


def stages(width: int, first: bool) -> dict[str, Any]:
    """Return MODEL.EXTRA of a network."""
    extra: dict[str, Any] = {}
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        extra[f"STAGE{stage}"] = {
            "NUM_MODULES": modules,
            "NUM_BRANCHES": stage,
            "BLOCK": "BASIC",
            "NUM_BLOCKS": [4] * stage,
            "NUM_CHANNELS": [width * 2**k for k in range(stage)],
            "FUSE_METHOD": "SUM",
        }
    if first:
        extra["STAGE1"] = {"NUM_MODULES": 1, "BLOCK": "BOTTLENECK", "NUM_BLOCKS": [4], "NUM_CHANNELS": [64]}
        extra["STAGE1"] |= {"NUM_BRANCHES": 1, "FUSE_METHOD": "SUM"}
    return extra


def pose(**train: Any) -> dict[str, Any]:
    return {
        "GPUS": "(0,1,2,3)",
        "DATASET": {"DATASET": "coco", "ROOT": "data/coco/", "COLOR_RGB": True, "PROB_HALF_BODY": 0.3, "ROT_FACTOR": 45,
                    "SCALE_FACTOR": 0.35, "TRAIN_SET": "train2017", "TEST_SET": "val2017"},
        "MODEL": {"NAME": "pose_hrnet", "NUM_JOINTS": 17, "IMAGE_SIZE": [192, 256], "HEATMAP_SIZE": [48, 64],
                  "PRETRAINED": "imagenet.pth", "EXTRA": stages(32, False)},
        "TRAIN": {"END_EPOCH": 210, "LR_STEP": [170, 200], "WD": 1e-4} | train,
        "TEST": {"FLIP_TEST": True, "POST_PROCESS": True, "SHIFT_HEATMAP": True, "USE_GT_BBOX": True, "OKS_THRE": 0.9,
                 "IN_VIS_THRE": 0.2, "COCO_BBOX_FILE": "data/coco/boxes.json"},
    }  # fmt: skip


def segmentation(name: str = "seg_hrnet", **train: Any) -> dict[str, Any]:
    return {
        "GPUS": [0, 1, 2, 3],
        "DATASET": {"DATASET": "cityscapes", "ROOT": "data/"},
        "MODEL": {"NAME": name, "EXTRA": stages(48, True)},
        "LOSS": {"OHEMKEEP": 131072} | ({"BALANCE_WEIGHTS": [0.4, 1]} if name.endswith("ocr") else {}),
        "TRAIN": {"BATCH_SIZE_PER_GPU": 3, "WD": 5e-4, "IGNORE_LABEL": 255} | train,
        "TEST": {},
    }


def face(**changes: Any) -> dict[str, Any]:
    folder = "./data/wflw"
    lists = {key: f"{folder}/face_landmarks_wflw_{key[:-3].lower()}.csv" for key in ("TRAINSET", "TESTSET")}
    return {
        "GPUS": "(0,)",
        "DATASET": {"DATASET": "WFLW", "ROOT": f"{folder}/images/", **lists},
        "MODEL": {"NAME": "hrnet", "NUM_JOINTS": 98, "EXTRA": stages(18, False)},
        "TRAIN": {},
        **changes,
    }


def classification() -> dict[str, Any]:
    train = {"END_EPOCH": 100, "LR_STEP": [30, 60, 90], "OPTIMIZER": "sgd", "LR": 0.05, "NESTEROV": True}
    return {
        "GPUS": "(0,1,2,3)",
        "DATASET": {"DATASET": "imagenet", "TRAIN_SET": "train", "TEST_SET": "val"},
        "MODEL": {"NAME": "cls_hrnet", "IMAGE_SIZE": [224, 224], "EXTRA": stages(18, True)},
        "TRAIN": train,
    }


def same(found: Recipe, name: str, *but: str) -> None:
    """Compare all sections with a recipe of the catalogue."""
    a, b = found.to_dict(), get_recipe(name).to_dict()
    for section in {*b} - {"description", "notes", "data", *but}:
        assert a[section] == b[section], section


def test_the_pose_file_is_the_recipe_of_the_catalogue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "w32.yaml"
    file.write_text(yaml.safe_dump(pose()))
    found = from_authors_config(file)
    same(found, "paper/pose_w32_coco", "evaluation")
    assert found.description.endswith("(w32.yaml)")
    assert found.data.train["annotations"] == "annotations/person_keypoints_train2017.json"
    assert found.evaluation.metric_options["oks_threshold"] == 0.9
    assert (found.evaluation.flip, found.evaluation.shift, found.evaluation.detections) == (True, True, None)
    notes = " ".join(found.notes)
    for part in ("WD=0.0001", "(evaluation.detections=boxes.json)", "PRETRAINED=imagenet.pth"):
        assert part in notes
        assert part in caplog.text
    config = pose()
    config["TEST"] |= {"USE_GT_BBOX": False, "IMAGE_THRE": 0.0}
    assert from_authors_config(config).evaluation.detections == "boxes.json"


def test_the_segmentation_files_are_the_recipes_of_the_catalogue() -> None:
    same(from_authors_config(segmentation()), "paper/seg_w48_cityscapes")
    found = from_authors_config(segmentation("seg_hrnet_ocr"))
    same(found, "paper/seg_w48_cityscapes_ocr")
    assert found.data.train == {
        "list_file": "list/cityscapes/train.lst", "images": ".", "num_classes": 19, "ignore_label": 255,
        "label_map": "cityscapes",
    }  # fmt: skip
    hard = segmentation()
    hard["LOSS"]["USE_OHEM"] = True
    same(from_authors_config(hard), "paper/seg_w48_cityscapes_ohem")


def test_other_segmentation_sets() -> None:
    lip = segmentation(
        IMAGE_SIZE=[473, 473], BASE_SIZE=473, SCALE_FACTOR=11, LR=7e-3, BATCH_SIZE_PER_GPU=10, END_EPOCH=150
    )
    lip["TRAIN"]["END_EPOCH"] = 150
    lip["DATASET"] = {"DATASET": "lip", "NUM_CLASSES": 20, "TRAIN_SET": "train.txt", "TEST_SET": "val.txt"}
    lip["TEST"] = {"IMAGE_SIZE": [473, 473], "BASE_SIZE": 473, "FLIP_TEST": True}
    found = from_authors_config(lip)
    same(found, "paper/seg_w48_lip")
    assert found.data.train["masks"] == "lip/TrainVal_parsing_annotations"
    assert found.data.train["swapped_classes"] == [[14, 15], [16, 17], [18, 19]]
    context = segmentation("seg_hrnet_ocr", IGNORE_LABEL=-1, NONBACKBONE_KEYWORDS=["cls", "aux", "ocr"], BASE_SIZE=520)
    context["DATASET"] |= {"DATASET": "pascal_ctx", "NUM_CLASSES": 59}
    found = from_authors_config(context)
    assert found.optimizer.head_lr_factor == 10
    assert (found.data.train["label_map"], found.data.train["ignore_label"]) == ("from_one", 255)
    assert found.loss["class_weights"] is None
    assert (found.evaluation.pad_windows, found.evaluation.stride) == (True, 2 / 3)
    assert found.inputs["resize_shorter"] == 520


def test_the_face_and_classification_files_are_the_recipes_of_the_catalogue() -> None:
    found = from_authors_config(face())
    same(found, "paper/face_w18_wflw", "evaluation", "model")
    assert found.data.train == {"table": "face_landmarks_wflw_train.csv", "points": "wflw", "images": "images"}
    assert found.evaluation.whole_pixels
    assert found.model.name == "hrnetv2_w18_face"
    aflw = face()
    aflw["DATASET"]["DATASET"] = "AFLW"
    assert from_authors_config(aflw).evaluation.metric_options == {"landmarks": "size"}
    same(from_authors_config(classification()), "paper/cls_w18_imagenet")


def test_a_file_can_be_trained_on_other_data() -> None:
    recipe = from_authors_config(pose()).override(
        "loop.batch_size=2", "evaluation={metric: pck}", "inputs.flip_pairs=[]"
    )
    data = {"layout": "deeplabcut", "train": {"table": "CollectedData.csv"}}
    task = build_task(Recipe.from_dict(recipe.to_dict() | {"data": data}), MOUSE, device="cpu")
    assert task.config.head.num_outputs == 17


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("TRAIN", "CUTMIX", 1, "TRAIN.CUTMIX: not known to this package"),
        ("LOSS", "FOCAL", 1, "LOSS.FOCAL: not known"),
        ("DATASET", "COLOR_RGB", False, "DATASET.COLOR_RGB is False"),
        ("DATASET", "DATA_FORMAT", "zip", "DATASET.DATA_FORMAT is 'zip'"),
        ("DATASET", "DATASET", "ochuman", "DATASET.DATASET is 'ochuman'"),
        ("MODEL", "TARGET_TYPE", "offset", "MODEL.TARGET_TYPE is 'offset'"),
        ("TRAIN", "OPTIMIZER", "rmsprop", "TRAIN.OPTIMIZER is 'rmsprop'; this package has 'adam' or 'sgd'"),
        ("TRAIN", "SHUFFLE", False, "TRAIN.SHUFFLE is False"),
        ("TRAIN", "LR", "high", "optimizer.lr='high'"),
        ("TEST", "POST_PROCESS", False, "TEST.POST_PROCESS is False"),
        ("TEST", "USE_GT_BBOX", False, "TEST.IMAGE_THRE is 0.1, its upstream's default"),
    ],
)
def test_settings_that_no_recipe_has_raise(section: str, key: str, value: object, message: str) -> None:
    config = pose()
    config.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError, match=message):
        from_authors_config(config)


def test_other_files_raise() -> None:
    for config, message in (
        (segmentation(MULTI_SCALE=False), "TRAIN.MULTI_SCALE is False"),
        (segmentation(NONBACKBONE_KEYWORDS=["stage4"]), "accepted is the whole head"),
        (segmentation(OPTIMIZER="adam"), "TRAIN.OPTIMIZER is 'adam'"),
        (segmentation(EXTRA_EPOCH=9), "TRAIN.EXTRA_EPOCH is 9, a second phase on DATASET.EXTRA_TRAIN_SET"),
        (pose() | {"GPUS": "all"}, "GPUS is 'all'"),
        (pose() | {"EXTRA": 1}, "EXTRA: not known"),
        ({"TRAIN": {}}, "no MODEL among the keys TRAIN"),
        ({"MODEL": {"NAME": "pose_resnet"}}, "none of the authors' HRNets"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_authors_config(config)
