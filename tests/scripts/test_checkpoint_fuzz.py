"""Fuzzing of the checkpoint reader: two hundred cases of ``scripts/fuzz_checkpoints.py``."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SEED, PARTS, EACH = 1, 4, 50


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("fuzz_checkpoints")


@pytest.fixture(scope="module")
def fuzz(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return script.Fuzz(SEED, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_damaged_files_load_right_or_raise(part: int, script: ModuleType, fuzz: Any) -> None:
    results = [fuzz.run(number) for number in range(part * EACH, (part + 1) * EACH)]
    assert [r for r in results if r.outcome not in script.OUTCOMES] == []
    assert {script.RIGHT, script.REFUSED} <= {r.outcome for r in results}


@pytest.mark.slow
def test_every_payload_and_bomb(script: ModuleType, fuzz: Any, tmp_path: Path) -> None:
    from checkpoint_mutations import put_in
    from hostile_pickles import bombs, payloads

    hostile = [*payloads(fuzz.canary), *bombs()]
    plain = [s for s in fuzz.samples if s.name in ("state_dict (zip)", "state_dict (legacy)")]
    assert len(plain) == 2
    for sample in plain:
        index = fuzz.samples.index(sample)
        for instructions in hostile:
            path = fuzz._write(put_in(sample, instructions), ".pth")
            case = script.Case(b"", "")
            assert fuzz._judge(index, path, case) in (script.RIGHT, script.REFUSED), instructions[:60]
            assert not fuzz.canary.exists()
            assert fuzz.watch.seen == []


@pytest.mark.processes
def test_payloads_would_run_in_an_ordinary_unpickler(script: ModuleType, fuzz: Any) -> None:
    """Else their being harmless would show nothing. All but Popen's are over when the process ends."""
    from hostile_pickles import payloads

    waiting = [p for p in payloads(fuzz.canary)[:11] if b"Popen" not in p]
    assert len(waiting) == 9
    for instructions in waiting:
        subprocess.run(
            [sys.executable, "-c", "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"],
            input=b"\x80\x02" + instructions + b".",
            capture_output=True,
            check=False,
        )
        assert fuzz.canary.exists(), instructions
        fuzz.canary.unlink()


def test_other_numbers_are_a_violation(script: ModuleType, fuzz: Any) -> None:
    """The judge sees a changed number, whatever the reader says."""
    sample = fuzz.samples[0]
    state = {k: v.clone() for k, v in sample.value.items()}
    state["conv1.weight"].flatten()[0] += 1
    path = fuzz._write(script.samples.__globals__["written"](state, "zip"), ".pth")
    assert fuzz._judge(0, path, script.Case(b"", "")) == "loaded other numbers"


def test_cases_follow_from_their_number(fuzz: Any) -> None:
    for number in random.Random(0).sample(range(1000), 5):
        assert fuzz.make(number)[2].content == fuzz.make(number)[2].content


@pytest.mark.slow
@pytest.mark.processes
def test_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "fuzz_checkpoints.py", "--count", "12", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["all", "12"]
