"""The check of training steps, on the CPU, where every step is eager and all results agree."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check_step.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("gpu_check_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module, "TIMED", 1)
    monkeypatch.setattr(module, "CASES", [module.CASES[0], module.CASES[-1]])
    return module


@pytest.mark.no_cover
@pytest.mark.slow
def test_steps_agree(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings.simplefilter("ignore")
    assert script.main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2
    assert all(one["weights"] == one["losses"] == 0 for one in found)
    # Other numbers are found.
    monkeypatch.setattr(script, "plain_step", lambda model, *_: lambda *batch: model(batch[0]).mean().detach())
    assert not script.compare(script.torch.device("cpu"), True, "auto", "sgd", None, False)["ok"]
