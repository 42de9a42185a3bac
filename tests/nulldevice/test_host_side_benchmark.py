"""``python -m benchmarks host``: what it records of a small network, and how it starts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_networks import two_stages

from benchmarks import host_side
from benchmarks.__main__ import main
from benchmarks.reports.page import render_page
from benchmarks.reports.records import by_case, load_run


@pytest.mark.slow
@pytest.mark.nulldevice
def test_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> torch.nn.Module:
        return two_stages().cuda().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(host_side, "_made", small)
    host_side.measure({"small": (64, 64)}, 2, tmp_path / "run.json")
    run = load_run(tmp_path / "run.json")
    groups = by_case(run.records)
    assert len(groups) == 2 * 2 * 2  # suites, quantities, dtypes
    for (suite, case, quantity, _), records in groups.items():
        found = {r.contender: r.value for r in records}
        assert case == "small 64x64 batch 1"
        assert len(found) == (5 if quantity == "training step" else 3)
        assert all(value for value in found.values())
        if suite == "host time":
            assert found["eager channels-last"] == 1.0
        elif quantity == "inference":
            assert found["hrnet_fast engine"] == 3  # the input's copy, the graph, the result's copy
        else:
            assert found["hrnet_fast memory=fast"] < found["eager channels-last"]
            assert found["hrnet_fast GraphedStep"] == 4  # copies of images and targets, the graph, the result's copy
    text = render_page(run)
    assert text.startswith("# Benchmarks: the host side of CUDA\n")
    assert "Nothing here ran on a GPU" in text


def test_it_starts_itself_on_the_null_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        started.append((command, options["env"]["NULLDEVICE_ZERO_SCALARS"]))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(host_side.subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        main(["host", "-o", str(tmp_path / "run.json"), "--networks", "hrnet_w18_small", "--rounds", "4"])
    assert stop.value.code == 3
    [(command, zeros)] = started
    assert command[:3] == [sys.executable, str(host_side.DEVICE_BUILD), sys.executable]
    assert command[5:] == ["host", "--output", str(tmp_path / "run.json"), "--rounds", "4", "--networks",
                           "hrnet_w18_small"]  # fmt: skip
    assert zeros == "1"


def test_without_its_kernels_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_side, "describe", lambda name: SimpleNamespace(usable=False, reason="no nvcc"))
    with pytest.raises(host_side.HRNetFastError, match="no nvcc"):
        host_side.measure({"small": (64, 64)}, 1, tmp_path / "run.json")
    assert not list(tmp_path.iterdir())
