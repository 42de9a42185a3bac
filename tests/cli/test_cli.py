"""The command line: output, written files and refused arguments."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, checkpoint, refused
from PIL import Image

from hrnet_fast import load_checkpoint
from hrnet_fast.cli.run import DECODINGS
from hrnet_fast.keypoints import METHODS
from hrnet_fast.tasks import TASKS


def test_models_lists_as_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "models", "*w32_pose")
    assert code == 0
    assert "hrnetv1_w32_pose" in out
    assert "256x192" in out
    _, out, _ = call(capsys, "models", "--json")
    names = [m["name"] for m in json.loads(out)]
    assert names == sorted(names)
    assert len(names) > 40
    assert "no model matches" in refused(capsys, "models", "resnet*")


@pytest.mark.slow
def test_info_of_a_named_network(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "info", "hrnetv1_w32_pose", "--json")
    about = json.loads(out)
    assert about["parameters"] == 28_536_113
    assert about["gflops"] == pytest.approx(7.12, abs=0.005)
    code, out, _ = call(capsys, "info", "hrnet_w18_c", "--size", "96x96")
    assert code == 0
    assert "96x96" in out
    assert "Near: hrnet" in refused(capsys, "info", "hrnet_w19_c")
    assert "HxW" in refused(capsys, "info", "hrnet_w18_c", "--size", "96")


@pytest.mark.slow
def test_info_of_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "v2", "mmseg", 7)
    _, out, _ = call(capsys, "info", str(path), "--json", "--size", "64x64")
    about = json.loads(out)
    assert about["family"] == "mmseg"
    assert about["config"]["head"]["num_outputs"] == 7
    assert "no such file" in refused(capsys, "info", str(tmp_path / "absent.pth"))


@pytest.mark.slow
def test_convert_writes_whole_or_not_at_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "v1", "mmpose", 5)
    target = tmp_path / "pose.safetensors"
    code, out, _ = call(capsys, "convert", source, target, "--to", "pose")
    assert code == 0
    assert str(target) in out
    assert load_checkpoint(target).family == "pose"
    assert "exists already" in refused(capsys, "convert", source, target, "--to", "pose")
    before = target.read_bytes()
    assert "is not one of" in refused(capsys, "convert", source, target, "--to", "nonsense", "--force")
    assert "cannot be written as 'timm'" in refused(capsys, "convert", source, target, "--to", "timm", "--force")
    source.write_bytes(source.read_bytes()[:1000])
    assert "truncated" in refused(capsys, "convert", source, target, "--to", "pose", "--force")
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mmpose.pth", "pose.safetensors"]


@pytest.mark.no_cover
@pytest.mark.slow
def test_weights_of_a_file_with_two_kinds(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    state = torch.load(checkpoint(tmp_path, "v1", "pose", 17))
    averages = {k: v * 2 if v.is_floating_point() else v for k, v in state.items()}
    path, out = tmp_path / "model_best.pth.tar", tmp_path / "out.pth"
    torch.save({"state_dict": state, "state_dict_ema": averages}, path)
    _, text, _ = call(capsys, "info", path, "--json")
    assert "took the averaged (EMA) weights" in json.loads(text)["notes"][0]
    _, text, _ = call(capsys, "info", path, "--json", "--weights", "raw")
    assert "took the weights as trained" in json.loads(text)["notes"][0]
    for weights, expected in (("auto", averages), ("ema", averages), ("raw", state)):
        assert call(capsys, "convert", path, out, "--to", "pose", "--weights", weights, "--force")[0] == 0
        assert torch.equal(torch.load(out)["conv1.weight"], expected["conv1.weight"])
    torch.save({"state_dict_ema": averages}, path)
    for command in (("info", path), ("convert", path, out, "--to", "pose", "--force")):
        assert "has averaged (EMA) weights alone" in refused(capsys, *command, "--weights", "raw")
    run = ("run", photo, "-c", path, "-t", "pose", "-o", tmp_path / "results")
    assert "has averaged (EMA) weights alone" in refused(capsys, *run, "--weights", "raw")
    assert call(capsys, *run, "--weights", "ema", "--size", "64x64")[0] == 0


@pytest.mark.parametrize(
    ("task", "head", "family", "outputs", "key"),
    [
        ("pose", "v1", "mmpose", 17, "people"),
        ("pose", "v1", "pose", 5, "people"),
        ("segmentation", "v2", "seg", 19, "shares"),
        ("segmentation", "ocr", "seg_ocr", 7, "shares"),
        ("classification", "c", "timm", 10, "classes"),
        ("landmarks", "face", "face", 29, "faces"),
    ],
)
def test_run_answers_and_draws(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    photo: Path,
    task: str,
    head: str,
    family: str,
    outputs: int,
    key: str,
) -> None:
    path = checkpoint(tmp_path, head, family, outputs)
    out_dir = tmp_path / "out"
    argv = ["run", photo, "-c", path, "-t", task, "-o", out_dir, "--size", "64x64", "--json"]
    code, out, _ = call(capsys, *argv)
    assert code == 0
    (result,) = json.loads(out)
    assert result == json.loads((out_dir / "photo.jpg.json").read_text())
    assert result["task"] == task
    assert result[key]
    picture = Image.open(out_dir / "photo.jpg.png").convert("RGB")
    assert picture.width == 90
    assert picture.height >= 70
    endings = ("json", "png", *(f"{name}.png" for name in TASKS[task].maps))
    assert sorted(p.name for p in out_dir.iterdir()) == sorted(f"photo.jpg.{ending}" for ending in endings)
    if task == "segmentation":
        labels = np.array(Image.open(out_dir / "photo.jpg.labels.png"))
        assert labels.shape == (70, 90)
        shares = {s["class"]: s["share"] for s in result["shares"]}
        assert shares == {int(c): round(float((labels == c).mean()), 5) for c in np.unique(labels)}


def test_run_on_a_folder_keeps_what_works(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo.rename(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no image")
    path = checkpoint(tmp_path, "c", "timm", 10)
    code, out, err = call(capsys, "run", folder, "-c", path, "-t", "classification", "-o", tmp_path / "out")
    assert code == 2
    assert "1 of 2 images done" in out
    assert "b.jpg" in err
    assert (tmp_path / "out" / "a.jpg.json").exists()


@pytest.mark.slow
def test_run_refuses_what_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    path = checkpoint(tmp_path, "c", "timm", 10)
    out = tmp_path / "out"
    assert "cannot do pose" in refused(capsys, "run", photo, "-c", path, "-t", "pose", "-o", out)
    base = ("run", photo, "-c", path, "-t", "classification", "-o", out)
    assert "no such image" in refused(capsys, "run", tmp_path / "none", *base[2:])
    boxed = ("run", photo, "-c", path, "-t", "pose", "-o", out, "--box", "1,2,3")
    assert "left,top,width,height" in refused(capsys, *boxed)
    assert "cannot run here" in refused(capsys, *base, "--impl", "cuda")
    assert "is not one of" in refused(capsys, *base, "--impl", "magic")
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    assert "2 labels given" in refused(capsys, *base, "--labels", labels)
    assert "no image" in refused(capsys, "run", _empty(tmp_path), *base[2:])
    pose = checkpoint(tmp_path, "v1", "pose", 5)
    assert "mirror" in refused(capsys, "run", photo, "-c", pose, "-t", "pose", "-o", out, "--flip")
    assert "Invalid value for '--task'" in refused(capsys, *base[:5], "dancing")


TASK_OPTIONS: dict[str, tuple[str, ...]] = {
    "pose": ("--size", "--box", "--flip", "--threshold", "--decode", "--align-corners", "--in-channels"),
    "segmentation": ("--size", "--flip", "--labels", "--align-corners", "--in-channels"),
    "classification": ("--size", "--flip", "--labels", "--top", "--in-channels"),
    "detection": ("--labels", "--threshold"),
    "landmarks": ("--size", "--box", "--flip", "--threshold", "--decode", "--align-corners", "--in-channels"),
}
# Defaults among them: what counts is that the option was given.
VALUES: dict[str, tuple[str, ...]] = {
    "--size": ("64x64",),
    "--box": ("0,0,30,30",),
    "--flip": (),
    "--labels": ("labels.txt",),
    "--top": ("5",),
    "--threshold": ("0.2",),
    "--decode": ("msra",),
    "--align-corners": (),
    "--in-channels": ("3",),
}


@pytest.mark.parametrize("task", TASK_OPTIONS)
def test_run_refuses_options_that_the_task_ignores(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path, task: str
) -> None:
    """Before anything is read: the checkpoint does not exist."""
    base = ("run", photo, "-c", tmp_path / "none.pth", "-t", task, "-o", tmp_path / "out")
    read = ", ".join(TASK_OPTIONS[task])
    for option, value in VALUES.items():
        err = refused(capsys, *base, option, *value)
        if option in TASK_OPTIONS[task]:
            assert "does not use" not in err
        else:
            assert f"{task} does not use {option}; leave it out. It uses {read}." in err
    everything = [word for option, value in VALUES.items() for word in (option, *value)]
    ignored = ", ".join(option for option in VALUES if option not in TASK_OPTIONS[task])
    assert f"does not use {ignored};" in refused(capsys, *base, *everything)


@pytest.mark.slow
def test_run_names_as_many_classes_as_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    path = checkpoint(tmp_path, "c", "timm", 10)
    base = ("run", photo, "-c", path, "-t", "classification", "--size", "64x64", "--json")
    for top, found in ((), 5), (("--top", 2), 2), (("--top", 99), 10):
        code, out, _ = call(capsys, *base, "-o", tmp_path / f"out{found}", *top)
        assert code == 0
        (result,) = json.loads(out)
        assert len(result["classes"]) == found
    assert "--top" in refused(capsys, *base, "--top", "0")


@pytest.mark.parametrize("kept", ["photo.jpg.json", "photo.jpg.png", "photo.jpg.labels.png"])
def test_run_keeps_earlier_results(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path, kept: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / kept).write_bytes(b"precious")
    absent = ("run", photo, "-c", tmp_path / "none.pth", "-t", "segmentation", "-o", out)
    err = refused(capsys, *absent)  # before anything is computed: there is no such checkpoint
    assert kept in err
    assert "--force" in err
    assert "no such file" in refused(capsys, *absent, "--force")
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [(kept, b"precious")]
    path = checkpoint(tmp_path, "v2", "seg", 7)
    code, _, _ = call(capsys, "run", photo, "-c", path, "-t", "segmentation", "-o", out, "--force")
    assert code == 0
    assert (out / kept).read_bytes() != b"precious"
    assert "photo.jpg.json and 2 more: existing results" in refused(
        capsys, "run", photo, "-c", path, "-t", "segmentation", "-o", out
    )


def _empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_doctor_says_what_cannot_run_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["implementations"]["reference"]["usable"]
    assert all(i["reason"] for i in found["implementations"].values())
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "impl='auto' means" in out


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("models", "info", "convert", "table", "run", "doctor", "demo"))
    assert "No such command" in refused(capsys, "dance")
    code, out, _ = call(capsys, "--version")
    assert code == 0


def test_the_command_line_knows_all_methods() -> None:
    """They are listed there once more, so that --help needs no torch."""
    assert DECODINGS == METHODS


def test_run_says_how_it_decoded(capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path) -> None:
    path = checkpoint(tmp_path, "v1", "mmpose", 17)
    base = ("run", photo, "-c", path, "-t", "pose", "--size", "64x64", "--json", "-o")
    code, out, err = call(capsys, *base, tmp_path / "default")
    assert (code, json.loads(out)[0]["decode"], json.loads(out)[0]["flip"]) == (0, "msra", None)
    assert err.count("\n") == 1
    assert "assumed, as a file of family 'mmpose' does not tell: heatmaps decode by 'msra'" in err
    code, out, err = call(capsys, *base, tmp_path / "udp", "--decode", "udp", "--flip")
    assert (code, json.loads(out)[0]["decode"], err) == (0, "udp", "")
    assert json.loads(out)[0]["flip"] == {"pairs": "coco", "shift": False}
    assert "Invalid value for '--decode'" in refused(capsys, *base, tmp_path / "none", "--decode", "simcc")


def test_landmarks_of_known_data_sets_are_mirrored(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, photo: Path
) -> None:
    base = ("run", photo, "-t", "landmarks", "--size", "64x64", "--json", "--flip", "-o", tmp_path / "out", "-c")
    code, out, err = call(capsys, *base, checkpoint(tmp_path, "face", "face", 98))
    assert code == 0
    assert "decode" not in err
    assert json.loads(out)[0]["decode"] == "face"
    assert json.loads(out)[0]["flip"] == {"pairs": "wflw", "shift": False}
    other = refused(capsys, *base, checkpoint(tmp_path, "face", "face", 21), "--force")
    assert "this network has 21" in other
