"""The script for machines with a GPU reaches every step, whatever fails on the way, and keeps what each printed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
STEPS = ["build", "doctor", "operators", "inference", "engine", "bench_fuse_sum", "bench_bn_act"]


@pytest.mark.parametrize(("breaks", "status"), [("nothing", 0), ("tests/ops", 1)])
def test_every_step_is_reached(tmp_path: Path, breaks: str, status: int) -> None:
    python = tmp_path / "python"  # stands in for the interpreter: the steps themselves need a device
    python.write_text(f'#!/bin/sh\necho "$@"\ncase "$*" in *"{breaks}"*) exit 3;; esac\n')
    python.chmod(0o755)
    out = tmp_path / "out"
    done = subprocess.run([SCRIPT, out, python], capture_output=True, text=True, check=False)
    assert done.returncode == status
    summary = (out / "summary.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in summary][: len(STEPS)] == STEPS
    assert sum("exit 3" in line for line in summary) == status
    for line in summary:
        called = (out / f"{line.split(':')[0]}.log").read_text().split()
        assert all((ROOT / word).exists() for word in called if word.startswith(("tests/", "benchmarks/", "setup.py")))


def test_without_a_folder() -> None:
    done = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr
