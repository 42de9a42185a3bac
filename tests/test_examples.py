"""The examples run, on small inputs."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL: dict[str, tuple[tuple[str, ...], str]] = {
    "accelerate_timm": (("--size", "64", "--batch", "2", "--steps", "2"), "step 2: loss"),
    "draw_pose": ((), "17 keypoints drawn in pose.png"),
    "serve_threads": (("--size", "64", "--requests", "6"), "6 requests answered by 4 threads"),
    "export_onnx": (("--model", "hrnet_w18_small", "--size", "64", "64"), "relative distance"),
    "torchvision_detector": (("--size", "64", "--steps", "2"), "boxes, scores, labels"),
    "distributed": (("--size", "64", "64", "--batch", "2", "--steps", "2"), "all processes have the same weights"),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMALL)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "distributed"])
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = SMALL[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert said in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.processes
def test_distributed(tmp_path: Path) -> None:
    words, said = SMALL["distributed"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(EXAMPLES / "distributed.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout
