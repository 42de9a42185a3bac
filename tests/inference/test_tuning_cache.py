"""Measurements: what wins, what is stored, and that no cache, however broken, is an error."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from simulated_time import simulate_time

from hrnet_fast.errors import ImplementationError
from hrnet_fast.inference.execution import tuning_cache
from hrnet_fast.inference.execution.candidate_timing import fastest
from hrnet_fast.inference.execution.tuning_cache import TuningResult, key_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _simulated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_time(monkeypatch)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(tuning_cache.ENV_VAR, str(tmp_path / "cache"))
    return tmp_path / "cache"


class Sleeper:
    """Takes its time, and counts how often it was asked to."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def __call__(self) -> None:
        self.calls += 1
        time.sleep(self.seconds)


def broken() -> None:
    raise RuntimeError("no such kernel")


def pair() -> dict[str, Sleeper]:
    return {"slow": Sleeper(0.02), "fast": Sleeper(0.001)}


def test_the_fastest_wins_and_is_remembered(folder: Path) -> None:
    candidates = pair()
    first = fastest("key", candidates, rounds=3)
    assert first.winner == "fast"
    assert not first.from_cache
    assert first.seconds["slow"] > first.seconds["fast"] > 0
    assert [c.calls for c in candidates.values()] == [4, 4]  # one of them not timed
    again = pair()
    second = fastest("key", again, rounds=3)
    assert (second.winner, second.seconds, second.from_cache) == ("fast", first.seconds, True)
    assert [c.calls for c in again.values()] == [0, 0]
    assert json.loads((folder / "tuning_cache.json").read_text())["results"]["key"]["winner"] == "fast"
    assert [path.name for path in folder.iterdir()] == ["tuning_cache.json"]


def test_time_is_bounded() -> None:
    candidates = pair()
    fastest("key", candidates, rounds=1000, time=0.05)
    assert candidates["slow"].calls == 1 + 3  # one that is not timed, then rounds of 21 ms


def test_a_candidate_that_raises_is_left_out() -> None:
    found = fastest("key", {"broken": broken, **pair()}, rounds=1)
    assert found.winner == "fast"
    assert "no such kernel" in found.reasons["broken"]
    assert "broken: RuntimeError: no such kernel" in str(found)
    assert str(found).startswith("fast ")
    assert str(fastest("key", {"broken": broken, **pair()})).endswith("from the cache")


def test_a_candidate_that_breaks_later_is_left_out() -> None:
    state = []

    def once() -> None:
        state.append(1)
        if len(state) > 1:
            raise MemoryError

    found = fastest("key", {"once": once, "fast": Sleeper(0.001)}, rounds=2)
    assert found.winner == "fast"
    assert "MemoryError" in found.reasons["once"]


def test_none_runs() -> None:
    with pytest.raises(ImplementationError, match="no such kernel"):
        fastest("key", {"a": broken, "b": broken})


def test_one_candidate_is_not_measured(folder: Path) -> None:
    only = Sleeper(0)
    assert fastest("key", {"only": only}) == TuningResult("key", "only")
    assert only.calls == 1
    assert not folder.exists()


def test_other_candidates_are_measured_anew() -> None:
    fastest("key", pair(), rounds=1)
    found = fastest("key", {**pair(), "third": Sleeper(0)}, rounds=1)
    assert (found.winner, found.from_cache) == ("third", False)


def test_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning_cache.ENV_VAR, "off")
    assert not fastest("key", pair(), rounds=1).from_cache
    assert not fastest("key", pair(), rounds=1).from_cache
    assert tuning_cache.cache_file() is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "\0", '{"format": 2}', '{"format": 2, "results": 3}', '{"format": 99, "results": {}}',
     '{"format": 2, "results": {"key": 7}}',
     '{"format": 2, "results": {"key": {"winner": "gone", "seconds": {"slow": 1, "fast": 2}, "reasons": {}}}}',
     '{"format": 2, "results": {"key": {"winner": ["fast"], "seconds": {"slow": 1, "fast": 2}, "reasons": {}}}}',
     '{"format": 2, "results": {"key": {"winner": "fast", "seconds": {"fast": "x"}, "reasons": {}}}}'],
)  # fmt: skip
def test_an_unreadable_cache_is_measured_over(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "tuning_cache.json").write_text(content)
    assert not fastest("key", pair(), rounds=1).from_cache
    assert fastest("key", pair(), rounds=1).from_cache


def test_an_unwritable_cache_is_no_error(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    assert fastest("key", pair(), rounds=1).winner == "fast"
    folder.unlink()
    (folder / "tuning_cache.json").mkdir(parents=True)  # nothing can replace a folder
    assert fastest("key", pair(), rounds=1).winner == "fast"
    assert [path.name for path in folder.iterdir()] == ["tuning_cache.json"]


def test_what_others_wrote_stays(folder: Path) -> None:
    fastest("theirs", pair(), rounds=1)
    threads = [threading.Thread(target=fastest, args=(f"ours{k}", pair()), kwargs={"rounds": 1}) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = json.loads((folder / "tuning_cache.json").read_text())["results"]
    assert set(kept) == {"theirs", *(f"ours{k}" for k in range(8))}


def test_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tuning_cache.ENV_VAR, "/one")
    assert tuning_cache.cache_file() == Path("/one/tuning_cache.json")
    monkeypatch.delenv(tuning_cache.ENV_VAR)
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert tuning_cache.cache_file() == Path("/two/hrnet_fast/tuning_cache.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/three")
    assert tuning_cache.cache_file() == Path("/three/.cache/hrnet_fast/tuning_cache.json")


def test_keys_tell_what_matters() -> None:
    key = key_for("convolution", (1, 2), device=CPU, dtype=torch.bfloat16)
    for part in (f"torch {torch.__version__}", "hrnet_fast ", "convolution", "(1,2)", "bfloat16", "threads"):
        assert part in key
    assert key != key_for("convolution", (1, 2), device=CPU, dtype=torch.float32)
