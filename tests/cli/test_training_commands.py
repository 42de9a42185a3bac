"""``train``, ``eval`` and ``recipe``: what they write and print, and what they refuse."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import call, checkpoint, refused
from tiny_recipes import MOUSE, save_classes, save_masks, settings

from hrnet_fast import html_report
from hrnet_fast.cli import main
from hrnet_fast.cli.train import run_name
from hrnet_fast.cli.training_bar import TrainingBar

TRAIN_MOUSE = ("train", "small/mouse", "--data", MOUSE, *settings("pose", "data.hold_out=2"), "--log-every", 1)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


class EventWriter:
    """In place of TensorBoard's ``SummaryWriter``: writes the tags and steps as text."""

    def __init__(self, folder: str) -> None:
        self.file = Path(folder) / "events"
        self.file.parent.mkdir(parents=True)
        self.lines: list[str] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.lines.append(f"{tag} {step}\n")

    def close(self) -> None:
        self.file.write_text("".join(self.lines))


@pytest.fixture(scope="module")
def mouse_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the mouse frames."""
    run = tmp_path_factory.mktemp("runs") / "mouse"
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=EventWriter))
        with pytest.raises(SystemExit) as stop:
            main([*map(str, TRAIN_MOUSE), "--out", str(run), "--tensorboard"])
    assert not stop.value.code, err.getvalue()
    assert re.search(r"epoch 2: loss .* images/s, .* % waiting for data, .* % for the step", err.getvalue())
    assert "epoch 2, raw weights: pck@0.05" in err.getvalue()
    assert f"{run}: finished; 2 epochs, 2 updates" in out.getvalue()
    return run


@pytest.mark.slow
def test_a_run_leaves_its_files_and_report(mouse_run: Path) -> None:
    names = {path.name for path in mouse_run.iterdir()}
    assert names >= {
        "best.pth", "curves.png", "environment.json", "final.pth", "last.pt", "log.jsonl", "recipe.yaml", "report.html",
    }  # fmt: skip
    page = (mouse_run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2, "the curves, and the one sample that is held out"
    assert "img02.png row 5" in page
    assert "finished after 2 updates" in page
    assert "<td>2</td><td>raw</td>" in page
    assert "deeplabcut" in page
    assert (mouse_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = (mouse_run / "tensorboard" / "events").read_text().splitlines()
    assert {"loss 1", "loss 2", "lr 2", "raw/pck@0.05 2"} <= set(events)


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["off", "on"])
def test_eval_repeats_a_runs_figures(
    capsys: pytest.CaptureFixture[str], mouse_run: Path, tmp_path: Path, engine: str
) -> None:
    """By the run's own recipe, and with options in place of its fields."""
    answers = tmp_path / "answers.json"
    base = ("eval", mouse_run / "final.pth", "--data", MOUSE, "--engine", engine, "--json")
    code, out, _ = call(capsys, *base, "--output", answers)
    assert code == 0
    found = json.loads(out)
    expected = records(mouse_run, "evaluation")[-1]["figures"]
    assert found["figures"] == pytest.approx(expected, rel=1e-3)
    assert found["ran"].startswith("engine" if engine == "on" else "model")
    assert (found["count"], found["skipped"]) == (1, 0)
    (sample,) = json.loads(answers.read_text())["samples"]
    assert len(sample["answer"]["points"]) == 17
    assert "exists already" in refused(capsys, *base, "--output", answers)
    changed = call(capsys, *base, "--flip", "--decode", "msra", "--set", "evaluation.metric_options.thresholds=[0.3]")
    evaluation = json.loads(changed[1])["evaluation"]
    assert (evaluation["flip"], evaluation["decode"]) == (True, "msra")
    assert "pck@0.3" in json.loads(changed[1])["figures"]


@pytest.mark.slow
def test_a_finished_run_is_reported_again_and_not_overwritten(
    capsys: pytest.CaptureFixture[str], mouse_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "has a run already" in refused(capsys, *TRAIN_MOUSE, "--out", mouse_run)
    before = (mouse_run / "report.html").read_text()
    (mouse_run / "report.html").unlink()
    resume = ("train", "--resume", "--out", mouse_run, "--data", MOUSE, "--json")
    code, out, err = call(capsys, *resume)
    assert (code, json.loads(out)["finished"]) == (0, True)
    assert (mouse_run / "report.html").read_text() == before
    # Without matplotlib the run is complete, and a note says what is missing.
    monkeypatch.setattr(html_report.importlib.util, "find_spec", lambda name: None)
    code, out, err = call(capsys, *resume)
    assert (code, json.loads(out)["report"]) == (0, [])
    assert "the report needs matplotlib and jinja2: pip install 'hrnet-fast[demo]'" in err


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "recipe", "make", "figure", "examples"),
    [
        ("segmentation", "small/camvid", lambda folder: save_masks(folder, 11), "miou", 2),
        ("classification", "small/cells", save_classes, "top1", 4),
    ],
)
def test_other_tasks_are_trained_and_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str, recipe: str, make: Any, figure: str, examples: int
) -> None:
    data, run = make(tmp_path / "data"), tmp_path / "run"
    code, out, err = call(
        capsys,
        "train",
        recipe,
        "--data",
        data,
        "--out",
        run,
        *settings(task, "loop.ema=0.9", "loop.epochs=1"),
        "--json",
    )
    assert code == 0, err
    done = json.loads(out)
    assert done["report"] == [str(run / "curves.png"), str(run / "report.html")]
    assert set(done["best"]) == {"raw", "ema"}
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + examples
    code, out, _ = call(capsys, "eval", run / "final_ema.pth", "--data", data, "--engine", "off", "--json")
    expected = records(run, "evaluation")[-1]
    assert expected["weights"] == "ema"
    assert json.loads(out)["figures"][figure] == pytest.approx(expected["figures"][figure], rel=1e-3)


@pytest.mark.slow
def test_validation_data_alone_is_enough_for_eval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of a checkpoint of mmsegmentation; the protocol's options reach the evaluation."""
    data = save_masks(tmp_path / "data", 11)
    for path in (*(data / "train").iterdir(), *(data / "trainannot").iterdir()):
        path.unlink()
    file = checkpoint(tmp_path, "v2", "mmseg", 11)
    base = ("eval", file, "--data", data, "--recipe", "small/camvid", "--workers", 0)
    code, out, _ = call(
        capsys,
        *base,
        "--scales",
        "0.5,1",
        "--window",
        "32x32",
        "--average",
        "exp",
        "--flip",
        "--batch-size",
        3,
        "--json",
    )
    assert code == 0
    about = json.loads(out)
    assert (about["count"], about["family"]) == (2, "mmseg")
    chosen = {"scales": [0.5, 1.0], "window": [32, 32], "average": "exp", "flip": True, "batch_size": 3}
    assert {name: about["evaluation"][name] for name in chosen} == chosen
    assert "iou/sky" in about["figures"]
    code, out, _ = call(capsys, *base)
    assert (code, "pixel_accuracy" in out, "2 samples, 0 skipped" in out) == (0, True, True)


def test_the_bar_of_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It appears with the run's first record, and tells speed, waiting and figures."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    bar = TrainingBar()
    bar.close()  # of a run that was refused
    assert capsys.readouterr().err == ""
    bar.record({"kind": "start", "choices": {}, "note": "resumed", "iterations": 9, "iteration": 3})
    bar.iteration(4, 9)
    bar.record({"kind": "step", "loss": 0.5, "images_per_second": 20.0, "wait_share": 0.25})
    bar.evaluation(1, 2)
    bar.record({"kind": "evaluation", "epoch": 2, "weights": "ema", "figures": {"miou": 0.5, "x": None, "iou/a": 1.0}})
    bar.record({"kind": "step", "loss": 0.5, "images_per_second": None, "wait_share": None})
    bar.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "epoch 2, ema weights: miou 0.5, x -\n" in shown
    assert "4/9" in shown
    assert "loss 0.5, speed unknown" in shown


@pytest.mark.parametrize(
    ("source", "name"), [("paper/pose_w32_coco", "paper_pose_w32_coco"), ("configs/mine.yaml", "mine")]
)
def test_a_run_is_named_after_its_recipe(source: str, name: str) -> None:
    assert run_name(source) == name


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "recipe", "list", "small/*", "--json")
    assert (code, [r["name"] for r in json.loads(out)][-1]) == (0, "small/mouse")
    assert "no recipe matches" in refused(capsys, "recipe", "list", "resnet*")
    code, out, _ = call(capsys, "recipe", "show", "small/mouse", "--set", "loop.epochs=7")
    assert (code, "  epochs: 7\n" in out) == (0, True)
    (tmp_path / "mine.yaml").write_text(out)
    code, again, _ = call(capsys, "recipe", "show", tmp_path / "mine.yaml")
    assert (code, again) == (0, out)
    assert "Near: small/mouse" in refused(capsys, "recipe", "show", "small/mice")


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = ("--data", MOUSE, "--out", tmp_path / "run")
    assert "no recipe given" in refused(capsys, "train", *data)
    assert "exclude each other" in refused(capsys, "train", "small/mouse", "--authors-yaml", "x.yaml", *data)
    assert "loop.epoch" in refused(capsys, "train", "small/mouse", *data, "--set", "loop.epoch=3")
    assert "Missing option '--data'" in refused(capsys, "train", "small/mouse")
    assert "--resume needs --out" in refused(capsys, "train", "small/mouse", "--data", MOUSE, "--resume")
    assert "has no run to resume" in refused(
        capsys, "train", "small/mouse", *data, "--resume", "--set", "data.hold_out=2"
    )
    assert "CollectedData.csv" in refused(capsys, "train", "small/mouse", "--data", tmp_path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    file = checkpoint(tmp_path, "v2", "mmseg", 11)
    base = ("eval", file, "--data", MOUSE)
    assert "no recipe given" in refused(capsys, *base)
    hold_out = ("--recipe", "small/mouse", "--set", "data.hold_out=2")
    classes = checkpoint(tmp_path, "c", "timm", 17)
    assert "a c head cannot do pose; that takes v1" in refused(capsys, "eval", classes, *base[2:], *hold_out)
    assert "no size; give height and width" in refused(capsys, *base, *hold_out, "--window", "32")
    assert "evaluation.scales" in refused(capsys, *base, *hold_out, "--scales", "0.5,1")
    pose = checkpoint(tmp_path, "v1", "pose", 5)
    lost = ("--output", tmp_path / "missing" / "answers.json")
    assert "missing is missing; make it" in refused(capsys, "eval", pose, *base[2:], *hold_out, *lost)
    assert "has 5 outputs and the data 17" in refused(capsys, "eval", pose, "--data", MOUSE, *hold_out)


@pytest.mark.slow
@pytest.mark.processes
def test_help_imports_no_torch() -> None:
    program = """
import sys
from hrnet_fast.cli import main
for command in (["--help"], ["train", "--help"], ["eval", "--help"], ["recipe", "list", "--help"]):
    try:
        main(command)
    except SystemExit as stop:
        assert not stop.code
print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "PIL", "yaml", "matplotlib"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_write_one_run(tmp_path: Path) -> None:
    """Started as ``torchrun`` starts them; the figures are those of all samples."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    argv = [*map(str, TRAIN_MOUSE), "--out", str(tmp_path / "run"), "--set", "data.hold_out=0"]
    argv += ["--set", "data.val={table: CollectedData.csv}", "--set", "loop.epochs=1"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "hrnet_fast.cli", *argv],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert "finished; 1 epochs" in outputs[0][0]
    assert outputs[1][0] == ""
    assert records(tmp_path / "run", "evaluation")[0]["count"] == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "samples that the first process evaluated" in page
