"""The CUDA kernels of every operator compile, need no stack or local memory, and read 128 bits at a time."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.compile,
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc"),
    pytest.mark.skipif(
        shutil.which("cuobjdump") is None and importlib.util.find_spec("triton") is None, reason="no cuobjdump"
    ),
]


@pytest.mark.parametrize(("operator", "instances"), [("fuse_sum", 133), ("bn_act", 72)])
def test_kernels_compile_without_spills(operator: str, instances: int) -> None:
    """For one target here; `make cuda-report` does all three, and the torch bindings."""
    script = Path(__file__).parents[2] / "scripts" / "cuda_report.py"
    done = subprocess.run(
        [sys.executable, script, "--operator", operator, "--check", "--no-bindings", "--target", "90"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{instances} instances compiled, 0 with a fault" in done.stdout
