"""The harness: results are checked before they are timed, missing figures have reasons, a cut-off run keeps figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_time import simulate_time
from torch import Tensor

from benchmarks import harness
from benchmarks.harness import Case, Entry, Session, quartiles
from benchmarks.reports.changes import find_changes
from benchmarks.reports.machine import revision
from benchmarks.reports.records import Record, load_run
from hrnet_fast.inference.profile import Ceilings

X = torch.linspace(-1, 1, 4096, dtype=torch.float64)
CASE = Case("inference", "a network batch 1", "inference", torch.float32, {"batch": 1})


@pytest.fixture(autouse=True)
def _simulated_time_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_time(monkeypatch)
    monkeypatch.setattr(harness, "ceilings", lambda *_: Ceilings(1e10, 1e11))  # measuring a device takes seconds


class Rounds:
    """Replaces pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, call: Callable[[], Any], rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds):
            call()


def session(tmp_path: Path, measuring: bool = True, **options: Any) -> Session:
    given = {"device": "cpu", "scale": "small", "dtypes": (torch.float32,), "contenders": None, "budget": 1.0}
    return Session({**given, "results": tmp_path / "run.json", **options}, measuring)


def answer(scale: float = 1.0, seconds: float = 0.001) -> Callable[[], Callable[[], Tensor]]:
    def call() -> Tensor:
        time.sleep(seconds)
        return (X * scale).float()

    return lambda: call


def exact() -> list[Tensor]:
    return [X]


def by_contender(path: Path) -> dict[str, Record]:
    return {r.contender: r for r in load_run(path / "run.json").records}


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_wrong_contender_gets_no_time(tmp_path: Path) -> None:
    entries = {
        "eager": Entry(answer(), exact=exact),
        "fast and wrong": Entry(answer(1.0001, 0.0), exact=exact),
        "not a number": Entry(answer(float("nan"), 0.0), exact=exact),
        "right": Entry(answer(), exact=exact),
    }
    medians = session(tmp_path).time_networks(Rounds(), CASE, entries, seconds=0.1, baseline="eager")
    found = by_contender(tmp_path)
    assert set(medians) == {"eager", "right"}
    for name in ("fast and wrong", "not a number"):
        assert (found[name].status, found[name].value) == ("wrong", None)
        assert "error" in found[name].note
    assert found["right"].status == "measured"
    assert found["right"].error == found["eager"].error
    assert found["right"].value == medians["right"] == pytest.approx(0.001, rel=0.01)
    assert found["right"].setup_s == pytest.approx(0.001, rel=0.01)


@pytest.mark.no_cover
@pytest.mark.slow
def test_contenders_that_cannot_run_have_reasons(tmp_path: Path) -> None:
    def fails() -> Callable[[], Tensor]:
        raise RuntimeError("no such kernel\nand more")

    entries = {
        "eager": Entry(answer(), exact=exact),
        "absent": Entry(answer(), "onnx is not installed"),
        "broken": Entry(fails, exact=exact),
    }
    session(tmp_path).time_networks(Rounds(), CASE, entries, seconds=0.05)
    found = by_contender(tmp_path)
    assert (found["absent"].status, found["absent"].note) == ("unavailable", "onnx is not installed")
    assert (found["broken"].status, found["broken"].note) == ("failed", "RuntimeError: no such kernel")
    assert found["eager"].status == "measured"


@pytest.mark.no_cover
@pytest.mark.slow
def test_what_does_not_fit_the_budget_is_named(tmp_path: Path) -> None:
    spent = session(tmp_path, budget=-1.0)
    assert spent.time_networks(Rounds(), CASE, {"eager": Entry(answer(), exact=exact)}) == {}
    assert by_contender(tmp_path)["eager"].status == "out of time"


@pytest.mark.no_cover
@pytest.mark.slow
def test_contenders_asked_for(tmp_path: Path) -> None:
    asked = session(tmp_path, contenders=["engine"])
    entries = {name: Entry(answer()) for name in ("eager", "hrnet_fast engine")}
    assert set(asked.time_networks(Rounds(), CASE, entries, seconds=0.05)) == {"hrnet_fast engine"}


@pytest.mark.no_cover
@pytest.mark.slow
def test_records_are_flushed_one_by_one(tmp_path: Path) -> None:
    running = session(tmp_path)
    running.add_bytes(CASE, "eager", 4096)
    assert [r.value for r in load_run(tmp_path / "run.json").records] == [4096]
    running.time_operator(Rounds(), CASE, {"eager": answer()(), "fused": answer()()}, rounds=3)
    assert len(load_run(tmp_path / "run.json").records) == 3


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_slowed_operator_is_caught(tmp_path: Path) -> None:
    runs = []
    for name, seconds in (("before", 0.004), ("again", 0.004), ("after", 0.006)):
        running = session(tmp_path, results=tmp_path / f"{name}.json")
        running.time_operator(Rounds(), CASE, {"eager": answer()(), "fused": answer(seconds=seconds)()}, rounds=15)
        runs.append(load_run(tmp_path / f"{name}.json"))
    before, again, after = runs

    def slower(a: Any, b: Any) -> list[str]:
        return [c.key[-1] for c in find_changes(a, b) if c.kind == "slower"]

    assert slower(before, after) == ["fused"]
    assert "fused" not in slower(before, again)


@pytest.mark.no_cover
@pytest.mark.slow
def test_limits_are_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the device's own speed
    running = session(tmp_path)
    top = running.run.ceilings
    assert top["copy"] > 1e8
    assert top["matmul float32"] > 1e9
    cost = {"flops": 2 * top["matmul float32"], "bytes": top["copy"]}
    assert running.limit(Entry(answer(), **cost), "float32") == pytest.approx(2.0)
    running.time_networks(Rounds(), CASE, {"eager": Entry(answer(), **cost)}, seconds=0.05)
    assert by_contender(tmp_path)["eager"].limit_s == pytest.approx(2.0)


def test_quartiles() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_revision() -> None:
    found = revision()
    assert found == "unknown" or len(found.removesuffix("-dirty")) == 12
