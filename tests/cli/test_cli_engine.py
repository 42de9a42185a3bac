"""The command line's use of the engine: results, plans and operator calls."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import call, checkpoint, refused

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.launches import NETWORKS, launches_row

INFERENCE = Path(hf.__file__).parents[1] / "docs" / "inference.md"


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 0.01), ("bfloat16", 1.0)])
def test_run_answers_as_the_model_does(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    photo: Path,
    dtype: str,
    apart: float,
) -> None:
    path = checkpoint(tmp_path, "v1", "mmpose", 17)
    argv = ["run", photo, "-c", path, "-t", "pose", "--size", "64x64", "--flip"]
    code, out, _ = call(capsys, *argv, "-o", tmp_path / "plain", "--engine", "off")
    assert code == 0
    assert "model, impl='auto'" in out
    code, out, _ = call(capsys, *argv, "-o", tmp_path / "engine", "--engine", "on", "--dtype", dtype)
    assert code == 0
    assert re.search(rf"engine, {dtype}: \d+ steps in \d+ waves", out)
    plain, engine = (json.loads((tmp_path / kind / "photo.jpg.json").read_text()) for kind in ("plain", "engine"))
    for a, b in zip(plain["people"], engine["people"], strict=True):
        scores = [[k["score"] for k in person["keypoints"]] for person in (a, b)]
        assert max(abs(s - t) for s, t in zip(*scores, strict=True)) <= apart


@pytest.mark.traced
@pytest.mark.slow
def test_many_images_are_worth_an_engine(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hrnet_fast.cli.run.ENGINE_PAYS", 2)
    path = checkpoint(tmp_path, "c", "timm", 10)
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(2):
        (folder / f"{k}.jpg").write_bytes(photo.read_bytes())
    argv = ["run", folder, "-c", path, "-t", "classification", "--size", "64x64"]
    assert "(engine, float32" in call(capsys, *argv, "-o", tmp_path / "a")[1]
    assert "(model" in call(capsys, *argv, "-o", tmp_path / "b", "--impl", "reference")[1]
    monkeypatch.setattr("hrnet_fast.tasks.engine_runner.optimize_for_inference", _refuse)
    code, out, err = call(capsys, *argv, "-o", tmp_path / "c")
    assert code == 0
    assert "2 of 2 images done (model, in place of an engine)" in out
    assert "no engine of this" in err
    code, _, err = call(capsys, *argv, "-o", tmp_path / "d", "--engine", "on")
    assert code == 2
    assert "no engine of this" in err
    monkeypatch.setenv("HRNET_FAST_IMPL", "reference")
    assert "(model, impl" in call(capsys, *argv, "-o", tmp_path / "e")[1]


def _refuse(*args: object, **options: object) -> None:
    raise InputError("no engine of this")


def test_what_excludes_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    argv = ["run", photo, "-c", checkpoint(tmp_path, "v1", "mmpose", 17), "-t", "pose", "-o", tmp_path / "out"]
    assert "--engine off" in refused(capsys, *argv, "--engine", "off", "--dtype", "bfloat16")
    assert "--impl reference" in refused(capsys, *argv, "--engine", "on", "--impl", "reference")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_plan_of_a_named_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "plan", "hrnet_w18_small", "--size", "64x96", "--batch", "2", "--steps")
    assert code == 0
    steps = int(out.split()[0])
    assert "input [2, 3, 64, 96]" in out
    assert len(out.splitlines()) == steps + 2
    code, out, _ = call(capsys, "plan", "hrnet_w18_small", "--dot", tmp_path / "plan.dot")
    assert code == 0
    assert (tmp_path / "plan.dot").read_text().startswith("digraph")
    assert "No model is called" in refused(capsys, "plan", "hrnet_w19")
    assert "pad height and width" in refused(capsys, "plan", "hrnetv1_w32_pose", "--size", "65x64")
    assert "--force" in refused(capsys, "plan", "hrnet_w18_small", "--dot", tmp_path / "plan.dot")
    assert call(capsys, "plan", "hrnet_w18_small", "--dot", tmp_path / "plan.dot", "--force")[0] == 0
    assert "cannot be written" in refused(capsys, "plan", "hrnet_w18_small", "--dot", tmp_path / "no" / "plan.dot")


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_documents_count_launches_as_they_are() -> None:
    text = INFERENCE.read_text(encoding="utf-8")
    table = text[text.index("<!-- launches -->") : text.index("<!-- end -->")]
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[3:]]
    counted = []
    torch.use_deterministic_algorithms(False)  # with them PyTorch interpolates in many operators
    for name in NETWORKS:
        row = launches_row(name)
        height, width = row.input_size
        counted.append([name, f"{height}x{width}", *map(str, (row.operator_calls, row.steps, row.grouped))])
    assert written == counted


@pytest.mark.slow
def test_doctor_tries_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "doctor", "--json")
    lines = json.loads(out)["engine"]
    assert [line.split(": ")[0] for line in lines[:2]] == ["float32 on cpu", "bfloat16 on cpu"]
    assert all("works" in line for line in lines)
