"""The steps of ``scripts/gpu_check.sh``, a test or benchmark of each file: whatever fails here fails by its values."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from gpu_check_list import Commands, full_steps
from gpu_check_runner import ROOT

pytestmark = pytest.mark.nulldevice
# Not measured, the benchmark of inference has a case for CPUs only. Engines have tests of their own here.
ENGINES = "benchmarks/bench_inference.py"


class FirstOfEachFile:
    """A plugin that runs one test of each file, and collects what they raise."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.raised: dict[str, type[BaseException]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = list({item.path: item for item in reversed(items)}.values())

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        self.ran += [item.path.name] if call.when == "call" else []
        if call.excinfo is not None:
            self.raised[item.nodeid] = call.excinfo.type


def files_of(tmp_path: Path, folder: str) -> list[str]:
    """Return the files that the steps run, once each."""
    steps = full_steps(Commands(tmp_path, sys.executable, {"arch": "9.0"}, dry_run=False), 60.0)
    return list(dict.fromkeys(word for step in steps for word in step.command if word.startswith(f"{folder}/")))


def run(arguments: list[str]) -> FirstOfEachFile:
    plugin = FirstOfEachFile()
    os.chdir(ROOT)
    pytest.main(["-q", *arguments, "-o", "pythonpath=. scripts tests/nulldevice"], plugins=[plugin])
    assert set(plugin.raised.values()) <= {AssertionError}, plugin.raised
    return plugin


@pytest.mark.slow
def test_parity(tmp_path: Path) -> None:
    files = files_of(tmp_path, "tests")
    assert len(run(["-m", "device", "-k", "not float64 and not opcheck and not compiled", *files]).ran) == len(files)


@pytest.mark.slow
def test_benchmarks(tmp_path: Path) -> None:
    files = [file for file in files_of(tmp_path, "benchmarks") if file != ENGINES]
    smoke = "not bench_training.py or batch-2-float32"  # its other cases are run where they are measured
    assert len(run(["--device=cuda", "--dtypes=float32", "-k", smoke, *files]).ran) == len(files)
