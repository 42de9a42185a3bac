"""Calls of the command line in this process, and checkpoint files of small random networks for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hrnet_fast import FAMILIES, HRNetConfig
from hrnet_fast.cli import main
from hrnet_fast.demo.random_weights import random_weights

TINY = {"num_blocks": 1, "num_modules": (1, 1, 1), "stage1_blocks": 1, "stage1_channels": 8, "width": 8}


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run the command line; return exit code, standard output and standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command line on bad input: one line on standard error, nothing else, exit code 2."""
    code, out, err = call(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.startswith("hrnet-fast: ")
    assert err.count("\n") == 1
    return err


def checkpoint(tmp_path: Path, head: str, family: str, outputs: int) -> Path:
    path = tmp_path / f"{family}.pth"
    options = {"conv_bias": False} if FAMILIES[family].head_conv_bias is False else {}
    torch.save(
        random_weights(HRNetConfig.make(head=head, num_outputs=outputs, **TINY).override(**options), family), path
    )
    return path
