"""Compiled kernels, the extension's and Triton's, need no stack or local memory; CUDA's read 128 bits at a time."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hrnet_fast.implementations import build_info

INSTANCES = 133 + 72  # of fuse_sum and of bn_act
TRITON_INSTANCES = {"fuse_sum": 36, "grouped_conv3x3": 10, "strided_conv_chain": 10, "upsample_conv1x1_sum": 10}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif((build_info() or {}).get("cuda") != "compiled in", reason="the extension has no CUDA kernels")
@pytest.mark.skipif(
    shutil.which("cuobjdump") is None and importlib.util.find_spec("triton") is None, reason="no cuobjdump"
)
def test_kernels_of_the_extension_spill_nothing() -> None:
    """For the architectures that it was built for; `make cuda-report` compiles for all targets."""
    from hrnet_fast import _C

    script = Path(__file__).parents[2] / "scripts" / "cuda_report.py"
    done = subprocess.run(
        [sys.executable, script, "--check", "--extension", _C.__file__],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{INSTANCES} instances compiled, 0 with a fault" in done.stdout


@pytest.mark.slow
@pytest.mark.compile
def test_triton_kernels_spill_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """For one target here, with tensor cores where halves are multiplied; `make kernels-report` does all three."""
    pytest.importorskip("triton", reason="the package triton is not installed")
    import kernels_report

    for operator, least in TRITON_INSTANCES.items():
        monkeypatch.setattr(sys, "argv", ["kernels_report.py", "--check", "--target", "90", "--kernel", operator])
        assert kernels_report.main() == 0, capsys.readouterr()
        out = capsys.readouterr().out
        assert ", 0 spill, 0 lack tensor cores" in out, operator
        assert int(out.split()[0]) >= least, operator
