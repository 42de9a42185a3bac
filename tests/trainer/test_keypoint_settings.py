"""Settings of a recipe for keypoints that do not fit the data are refused where the task is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrnet_fast.errors import HRNetFastError
from hrnet_fast.recipes import get_recipe
from hrnet_fast.trainer.build_task import build_task

MOUSE = Path(__file__).parents[1] / "data" / "mouse"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("inputs.flip_pairs=[[0, 99]]", r"inputs\.flip_pairs, for 17 keypoints: .*99"),
        ("evaluation.decode=udp", "evaluation.decode asks for 'udp' and crops are made by 'dark'"),
        ("evaluation.metric_options.size=foo", r"metric_options\.size='foo'"),
        ("evaluation={metric: nme}", "no data set with 17 landmarks is known|give landmarks="),
        ("evaluation={metric: pckh}", "needs metric_options.head_boxes"),
    ],
)
def test_a_setting_is_refused_before_training(setting: str, named: str) -> None:
    recipe = get_recipe("small/mouse").override("data.hold_out=3", "loop.batch_size=2", setting)
    with pytest.raises(HRNetFastError, match=named):
        build_task(recipe, MOUSE, device="cpu")
