"""``scripts/kernels_report.py``: its tables and its failures, with compilation replaced by stand-ins."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")

OLD = "the whole table\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    path = Path(__file__).parents[2] / "scripts" / "kernels_report.py"
    spec = importlib.util.spec_from_file_location("kernels_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "REPORT.md").write_text(OLD)
    monkeypatch.setattr(module, "REPORT", tmp_path / "REPORT.md")
    use(module, monkeypatch, spills=0)
    return module


def use(script: ModuleType, monkeypatch: pytest.MonkeyPatch, spills: int) -> None:
    found = {"REG": 32, "STACK": spills, "LOCAL": 0, "SHARED": 0, "MMA": "mma.sync"}
    monkeypatch.setattr(script, "usage", lambda instance, capability: found)


def count(script: ModuleType) -> int:
    return sum(len(list(instances())) for instances in script.INSTANCES.values())


def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kernels_report.py", *argv])
    return int(script.main())


@pytest.mark.parametrize("argv", [(), ("--target", "100", "--target", "80", "--target", "90")])
def test_a_full_run_writes_the_report(
    argv: tuple[str, ...], script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(script, monkeypatch, *argv) == 0
    text = script.REPORT.read_text()
    instances = count(script)
    assert [text.count(f"| sm_{t} |") for t in script.TARGETS] == [instances] * len(script.TARGETS)


@pytest.mark.parametrize("argv", [("--target", "90"), ("--target", "90", "--target", "90", "--target", "90")])
def test_a_partial_run_writes_nothing_and_says_so(
    argv: tuple[str, ...],
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(script, monkeypatch, *argv) == 0
    assert script.REPORT.read_text() == OLD
    out = capsys.readouterr().out
    assert out.count("REPORT.md not written: only sm_90 compiled\n") == 1
    assert f"{count(script)} instances compiled, 0 spill" in out


def test_spills_fail_a_check_that_writes_nothing(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use(script, monkeypatch, spills=8)
    assert call(script, monkeypatch, "--check") == 1
    assert script.REPORT.read_text() == OLD
