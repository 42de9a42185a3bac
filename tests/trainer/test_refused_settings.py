"""Settings of a recipe that do not fit the data are refused where the task is made, before any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrnet_fast.errors import HRNetFastError
from hrnet_fast.recipes import get_recipe
from hrnet_fast.trainer.build_task import build_task

MOUSE = Path(__file__).parents[1] / "data" / "mouse"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("inputs.flip_pairs=[[0, 99]]", r"inputs\.flip_pairs, for 17 keypoints: .*99"),
        ("evaluation.best=foo", r"evaluation\.best='foo'; accepted are mean_error, pck@"),
        ("evaluation.decode=udp", "evaluation.decode asks for 'udp' and crops are made by 'dark'"),
        ("evaluation.metric_options.size=foo", r"metric_options\.size='foo'"),
        ("evaluation={metric: nme}", "no data set with 17 landmarks is known|give landmarks="),
        ("evaluation={metric: pckh}", "needs metric_options.head_boxes"),
    ],
)
def test_settings_of_keypoints(setting: str, named: str) -> None:
    recipe = get_recipe("small/mouse").override("data.hold_out=3", "loop.batch_size=2", setting)
    with pytest.raises(HRNetFastError, match=named):
        build_task(recipe, MOUSE, device="cpu")


def test_settings_of_segmentation(tmp_path: Path) -> None:
    for name in ("train", "trainannot", "val", "valannot"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((32, 32) if name.endswith("annot") else (32, 32, 3), np.uint8)).save(
            tmp_path / name / "0.png"
        )
    recipe = get_recipe("small/camvid").override("loop.batch_size=1")
    assert build_task(recipe.override("evaluation.best=iou/sky"), tmp_path, device="cpu").best == "iou/sky"
    with pytest.raises(HRNetFastError, match=r"evaluation\.best='foo'; accepted are iou/"):
        build_task(recipe.override("evaluation.best=foo"), tmp_path, device="cpu")
    with pytest.raises(HRNetFastError, match="absent="):
        build_task(recipe.override("evaluation.metric_options.absent=foo"), tmp_path, device="cpu")


def test_settings_of_classification(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / part / name / "0.png")
    recipe = get_recipe("small/cells").override("loop.batch_size=1")
    with pytest.raises(HRNetFastError, match=r"evaluation\.best='top5'; accepted are top1"):
        build_task(recipe.override("evaluation.best=top5"), tmp_path, device="cpu")
    with pytest.raises(HRNetFastError, match="2 classes for top-5"):
        build_task(recipe.override("evaluation.metric_options.ks=[1, 5]"), tmp_path, device="cpu")
