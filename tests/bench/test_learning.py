"""Trainings on real pictures: what is run, what results are kept, the page, and cells cut out of pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import learning
from benchmarks.cut_cells import cut_cells
from benchmarks.reports.learning_page import write_learning_page
from benchmarks.reports.trainings import EAGER, OURS, RECIPES, read_trainings
from hrnet_fast.errors import HRNetFastError, InputError
from hrnet_fast.recipes import get_recipe

MOUSE = {"small/mouse": RECIPES["small/mouse"]}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Replace trainings by processes that write a log; return the arguments of each."""
    given: list[Sequence[str]] = []

    def start(arguments: Sequence[str], data: Path, output: Path) -> subprocess.Popen[bytes]:
        given.append(arguments)
        run = Path(arguments[arguments.index("--out") + 1])
        run.mkdir()
        fused = {"report": "18 of 18 blocks"} if any("accelerate=on" in a for a in arguments) else {}
        records = [
            {"kind": "start", "choices": {"accelerate": fused}},
            {"kind": "epoch", "epoch": 1, "loss": 0.5, "seconds": 2.0},
            {"kind": "epoch", "epoch": 2, "loss": 0.25, "seconds": 3.0},
            {"kind": "evaluation", "epoch": 2, "figures": {"pck@0.05": 0.75, "rmse": 8.5}},
        ]
        (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        fails = "loop.seed=9" in " ".join(arguments)
        with output.open("wb") as file:
            return subprocess.Popen([sys.executable, "-c", f"print('out of luck'); exit({int(fails)})"], stdout=file)

    monkeypatch.setattr(learning, "_start", start)
    (tmp_path / "mouse").mkdir()
    return given


def test_pairs_are_trained_once_and_the_page_compares_them(started: list[Sequence[str]], tmp_path: Path) -> None:
    output, page, picture = tmp_path / "new" / "mine.json", tmp_path / "learning.md", tmp_path / "learning.png"
    made = learning.learn(tmp_path, output, MOUSE, [0])
    assert [(t.modules, t.seconds, t.losses, t.report) for t in made] == [
        (EAGER, 5.0, [0.5, 0.25], ""),
        (OURS, 5.0, [0.5, 0.25], "18 of 18 blocks"),
    ]
    assert made[1].command.endswith("--set=loop.seed=0 --set=loop.accelerate=on")
    assert "--out runs/mouse-accelerated-0 " in made[1].command
    for arguments in started:  # the recipe has every field that is set
        get_recipe("small/mouse").override(*(a.removeprefix("--set=") for a in arguments if a.startswith("--set=")))
    learning.learn(tmp_path, output, MOUSE, [0, 1])
    assert len(started) == 4
    assert len(read_trainings(output)) == 4

    assert write_learning_page(output, page, picture)
    assert not write_learning_page(output, page, picture, check=True)
    assert "| small/mouse | pck@0.05 | 2 | 0.750, 0.750 | 0.750, 0.750 | 0 | 0 |" in page.read_text()
    assert "|  | rmse | 2 | 8.50, 8.50 | 8.50, 8.50 |" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_failed_training_is_told_and_results_stay(started: list[Sequence[str]], tmp_path: Path) -> None:
    output = tmp_path / "mine.json"
    learning.learn(tmp_path, output, MOUSE, [0])
    with pytest.raises(HRNetFastError, match="small/mouse, seed 9, eager: the training failed: out of luck"):
        learning.learn(tmp_path, output, MOUSE, [9])
    assert len(read_trainings(output)) == 2
    with pytest.raises(InputError, match="no such folder, and small/faces reads it"):
        learning.learn(tmp_path, output, {"small/faces": RECIPES["small/faces"]}, [0])
    output.write_text("{}")
    with pytest.raises(InputError, match="no results of trainings"):
        read_trainings(output)


VOC = """<annotation>{}</annotation>"""
BOX = (
    """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""
)


def test_cells_are_cut_by_class(tmp_path: Path) -> None:
    source = tmp_path / "bccd"
    for folder in ("JPEGImages", "Annotations"):
        (source / folder).mkdir(parents=True)
    boxes = [("RBC", 0, 0, 10, 10)] * 6 + [("WBC", 10, 20, 30, 40), ("WBC", 5, 5, 5, 9)]
    for part in ("train", "val"):
        (source / f"{part}.txt").write_text(f"{part}\n")
        Image.new("RGB", (64, 48)).save(source / "JPEGImages" / f"{part}.jpg")
        (source / "Annotations" / f"{part}.xml").write_text(VOC.format("".join(BOX.format(*b) for b in boxes)))
    counts = cut_cells(source, tmp_path / "cells")
    assert counts == {"train/RBC": 4, "train/WBC": 1, "val/RBC": 4, "val/WBC": 1}
    with Image.open(tmp_path / "cells" / "train" / "WBC" / "train_6.png") as cell:
        assert cell.size == (24, 24)
    with pytest.raises(InputError, match="exists"):
        cut_cells(source, tmp_path / "cells")
    (source / "val.txt").unlink()
    with pytest.raises(InputError, match="cells cannot be cut"):
        cut_cells(source, tmp_path / "others")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import main

    for argv, said in (
        (
            ["learn", "--data", tmp_path, "-o", tmp_path / "x.json", "--recipes", "small/horse"],
            "accepted are small/mouse",
        ),
        (["learn", "--data", tmp_path, "-o", tmp_path / "x.json", "--seeds", "a"], "give whole numbers"),
        (["cells", tmp_path, tmp_path], "exists"),
        (["learning-page", tmp_path / "x.json"], "no results of trainings"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, argv)))
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
