"""The demonstration: its measurements, its report, and warnings of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import checkpoint
from PIL import Image
from tiny_networks import tiny

import hrnet_fast.demo.measurement
from hrnet_fast.cli import main
from hrnet_fast.demo.measurement import DemoTask
from hrnet_fast.demo.pictures import picture_of
from hrnet_fast.demo.random_weights import random_weights
from hrnet_fast.models import get_config


def demo(*argv: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["demo", *map(str, argv)])
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_report_of_random_and_of_given_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small network in place of the demonstration's own, and of a given one."""
    small = DemoTask("hrnet_w18_small", "timm", (96, 64))
    monkeypatch.setitem(hrnet_fast.demo.measurement.DEMO_TASKS, "classification", small)
    weights = checkpoint(tmp_path, "v1", "mmpose", 17)
    out = tmp_path / "report"
    argv = ("--rounds", 1, "--task", "classification", "--task", "pose", "-o", out)
    assert demo(*argv, "-c", f"pose={weights}") == 0
    printed = capsys.readouterr().out
    assert "classification: the weights are RANDOM" in printed
    assert "pose: the weights are RANDOM" not in printed

    data = json.loads((out / "results.json").read_text())
    by_task = {r["task"]: r for r in data["results"]}
    assert by_task["classification"]["random_weights"]
    assert not by_task["pose"]["random_weights"]
    assert by_task["pose"]["family"] == "mmpose"
    for result in by_task.values():
        for m in result["measurements"]:
            assert 0 <= m["error"] < (1e-5 if m["dtype"] == "float32" else 0.1)
            assert m["seconds"] > 0
            assert m["launches"] > 30
            assert m["setup_seconds"] > 0
            assert m["peak_bytes"] > 1e5
        ran = {m["contender"] for m in result["measurements"]}
        assert {"reference", "engine"} <= ran
    assert set(data["not_run"]) <= {"cpu", "triton", "cuda"}
    page = (out / "report.html").read_text()
    assert "Random weights:" in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("<!doctype html>", "")
    for name in ("chart.png", "pose.png", "classification.png"):
        assert Image.open(out / name).size[0] > 100

    assert demo(*argv) == 2
    assert "holds a report already" in capsys.readouterr().err


def test_bad_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        (("--task", "dancing"), "accepted are"),
        (("-c", "pose"), "TASK=FILE"),
        (("-c", f"pose={tmp_path}/none.pth", "--task", "pose"), "no such file"),
        (("--image", tmp_path / "none.jpg", "--task", "pose"), "no such image"),
        (("--rounds", 0), "at least 1"),
        (("-c", f"pose={tmp_path}/none.pth", "--task", "detection"), "--task leaves pose out"),
        (("-c", f"pose={tmp_path}/none.pth", "-c", f"pose={tmp_path}/other.pth"), "one file a task"),
    ):
        assert demo(*argv, "-o", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()


TASK_HEADS = {"pose": "v1", "segmentation": "v2", "classification": "c", "detection": "v2p"}


@pytest.mark.parametrize("task", TASK_HEADS)
def test_checkpoints_of_other_heads_are_refused(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first task is measured, whichever task it is given for."""

    def measured(*_: object) -> None:
        raise AssertionError("measured before the checkpoints were looked at")

    monkeypatch.setattr(hrnet_fast.demo.measurement, "_measure_contenders", measured)
    head = "features" if task == "detection" else "v2p"
    weights = tmp_path / "other.pth"
    torch.save(tiny(head).state_dict(), weights)
    assert demo("-c", f"{task}={weights}", "-o", tmp_path / "out") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert f"({head} head) cannot do {task}; that takes one with a " in err
    assert TASK_HEADS[task] in err.split("takes one with a")[1]
    assert not (tmp_path / "out").exists()


def test_levels_of_a_pyramid_are_drawn_side_by_side() -> None:
    """Each in the photograph's size, rounded down to multiples of 32, and over the whole range of greys."""
    with torch.no_grad():
        picture = picture_of("detection", tiny("v2p"), Image.new("RGB", (100, 70), (200, 100, 50)))
    assert (picture.mode, picture.size) == ("RGB", (5 * 96, 64))
    for k in range(5):
        low, high = picture.crop((96 * k, 0, 96 * (k + 1), 64)).convert("L").getextrema()
        assert low == 0
        assert high == 255 or k == 4  # the last level is one pixel


def test_random_state_is_reproducible_and_lively() -> None:
    config = get_config("hrnet_w18_small", num_outputs=3)
    a, b = random_weights(config, "timm"), random_weights(config, "timm")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(v, torch.zeros_like(v)) for k, v in a.items() if k.endswith("running_mean"))
