"""Comparisons of two runs: slowdowns are found, noise is not, and wrong results come first."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import WRONG, full_run, measured, missing, run_of, sampled, slowed

from benchmarks.reports.changes import KINDS, Change, count_compared, differences, failing, find_changes
from benchmarks.reports.records import Record


def kinds(before: Record | None, after: Record | None, threshold: float = 0.05) -> list[str]:
    runs = (run_of([r] if r else []) for r in (before, after))
    return [c.kind for c in find_changes(*runs, threshold)]


def test_a_slowed_operator_is_found() -> None:
    run = full_run()
    (change,) = find_changes(run, slowed(run, 1.3))
    assert change.kind == "slower"
    assert change.key == ("operators", "fuse_sum 4 branches", "forward", "float32", "fused cpu")
    assert change.ratio == pytest.approx(1.3)
    assert change.noise is not None
    assert change.noise < 0.1
    assert change.fails
    assert find_changes(run, slowed(run, 1.04)) == []
    assert find_changes(run, run) == []
    (change,) = find_changes(slowed(run, 1.3), run)
    assert change.kind == "faster"
    assert not failing([change])


def test_noise_hides_what_it_explains() -> None:
    def both(spread: float) -> list[str]:
        return kinds(measured("engine", 1.0, spread), measured("engine", 1.2, spread))

    assert both(0.05) == ["slower"]
    assert both(0.2) == []
    # Quartiles that lie together by chance, in a suite whose records spread: the others say how noisy it was.
    noisy = [measured("eager", 1.0, 0.2, case=f"case {i}") for i in range(5)]
    calm = measured("engine", 1.0, 0.0)
    moved = dataclasses.replace(calm, value=1.2, low=1.2, high=1.2)
    assert find_changes(run_of([*noisy, calm]), run_of([*noisy, moved])) == []
    assert kinds(calm, moved) == ["slower"]
    assert kinds(calm, moved, threshold=0.25) == []


def test_few_rounds_count_less() -> None:
    def moved(rounds: int, by: float = 1.15, **given: object) -> list[str]:
        records = (measured("engine", v, 0.05, rounds=rounds, **given) for v in (1.0, by))
        return kinds(*records)

    assert moved(30) == ["slower"]
    assert moved(3) == moved(1) == []
    assert moved(1, by=1.8) == ["slower"]
    assert moved(30, low=None, high=None) == []
    assert moved(30, by=1.3, low=None, high=None) == ["slower"]
    assert moved(30, low=float("nan")) == []


def test_bytes_have_no_noise_and_rates_fall() -> None:
    given_bytes = {"unit": "byte", "low": None, "high": None, "rounds": 1}
    assert kinds(measured("engine", 100.0, **given_bytes), measured("engine", 110.0, **given_bytes)) == ["larger"]
    assert kinds(measured("engine", 100.0, **given_bytes), measured("engine", 90.0, **given_bytes)) == ["smaller"]
    assert kinds(measured("engine", 100.0, **given_bytes), measured("engine", 104.0, **given_bytes)) == []
    (change,) = find_changes(run_of([measured("a", 0.0, **given_bytes)]), run_of([measured("a", 8.0, **given_bytes)]))
    assert (change.kind, change.ratio) == ("larger", None)
    assert kinds(measured("a", 0.0, **given_bytes), measured("a", 0.0, **given_bytes)) == []
    assert kinds(measured("a", 2e9, unit="byte/s"), measured("a", 1e9, unit="byte/s")) == ["slower"]
    assert kinds(measured("a", 1e9, unit="FLOP/s"), measured("a", 2e9, unit="FLOP/s")) == ["faster"]
    assert kinds(measured("a", 1.0), measured("a", 2.0, unit="byte")) == ["other"]


def test_every_launch_counts_and_ratios_have_a_tolerance() -> None:
    def launches(n: float) -> Record:
        return measured("engine", n, spread=0.0, unit="launch", rounds=1)

    assert kinds(launches(2345), launches(2346)) == ["larger"]
    assert kinds(launches(2345), launches(2344)) == ["smaller"]
    assert kinds(launches(3), launches(3)) == []
    for after, found in ((0.77, []), (0.85, ["slower"]), (0.6, ["faster"])):
        assert kinds(measured("a", 0.7, unit="ratio"), measured("a", after, unit="ratio")) == found


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("measured", "wrong", "wrong"),
        ("unavailable", "wrong", "wrong"),
        (None, "wrong", "wrong"),
        ("measured", "failed", "lost"),
        ("measured", "out of time", "lost"),
        ("measured", "unavailable", "unavailable"),
        ("unavailable", "failed", "other"),
        ("wrong", "measured", "repaired"),
        ("wrong", "failed", "other"),
        ("measured", None, "only before"),
        ("wrong", None, "only before"),
        (None, "measured", "only after"),
        ("wrong", "wrong", None),
    ],
)
def test_changes_of_status(before: str | None, after: str | None, kind: str | None) -> None:
    def record(status: str | None) -> Record | None:
        if status is None:
            return None
        return measured("engine", 1.0) if status == "measured" else missing("engine", status)

    assert kinds(record(before), record(after)) == ([kind] if kind else [])
    assert failing([Change(kind, record(before), record(after))] if kind else []) == (kind in ("wrong", "lost"))


def test_the_worst_comes_first() -> None:
    good = [measured(name, 1.0) for name in ("a", "b", "c", "compiled", "gone")]
    bad = [measured("a", 1.3), measured("b", 0.5), measured("c", 3.0), WRONG, measured("new", 1.0)]
    found = find_changes(run_of(good), run_of(bad))
    assert [(c.kind, c.key[-1]) for c in found] == [
        ("wrong", "compiled"),
        ("slower", "c"),
        ("slower", "a"),
        ("faster", "b"),
        ("only before", "gone"),
        ("only after", "new"),
    ]
    assert {c.kind for c in found} <= set(KINDS)
    assert count_compared(run_of(good), run_of(bad)) == 3


def test_of_repeated_records_the_last_counts() -> None:
    first, again = measured("engine", 9.0), measured("engine", 1.0)
    assert find_changes(run_of([again]), run_of([first, again])) == []


def test_differences_of_machines() -> None:
    run = full_run()
    assert differences(run, full_run()) == []
    other = dataclasses.replace(run, machine={"device": "B", "kind": "cpu", "threads": 8}, versions={})
    assert differences(run, other) == [
        "device Test CPU 3000 before, B after",
        "threads 4 before, 8 after",
        "torch 2.10.0 before, unknown after",
    ]


DISTRIBUTIONS = {
    "normal": lambda g, n: np.maximum(g.normal(1.0, 0.05, n), 0.1),
    "uniform": lambda g, n: g.uniform(0.8, 1.2, n),
    "skewed": lambda g, n: 1 + g.exponential(0.1, n),
    "two speeds": lambda g, n: np.where(g.random(n) < 0.8, 1.0, 1.15) * g.normal(1, 0.01, n),
}
CASES = 20


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DISTRIBUTIONS)), st.integers(5, 40), st.integers(0, 2**32), st.floats(1e-6, 10.0))
def test_runs_of_one_distribution_are_equal(name: str, rounds: int, seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    if name == "two speeds":
        rounds += 10  # four of five rounds may well meet the slower one, and quartiles then show nothing of the other
    runs = [
        run_of([sampled(scale * DISTRIBUTIONS[name](generator, rounds), case=f"case {i}") for i in range(CASES)])
        for _ in range(2)
    ]
    assert find_changes(*runs) == []


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(3, 40), st.floats(0, 0.05), st.floats(1.3, 10.0), st.integers(0, 2**32))
def test_slowdowns_beyond_noise_are_found(rounds: int, spread: float, factor: float, seed: int) -> None:
    """However the rounds fell: within `spread` of the median, every one of them slower by `factor`."""
    seconds = np.random.default_rng(seed).uniform(1 - spread / 2, 1 + spread / 2, rounds)
    run = run_of([sampled(seconds)])
    (change,) = find_changes(run, slowed(run, factor, "engine"))
    assert change.kind == "slower"
    (change,) = find_changes(slowed(run, factor, "engine"), run)
    assert change.kind == "faster"


TRIPLES = st.lists(st.floats(0.1, 10), min_size=3, max_size=3).map(sorted)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(TRIPLES, TRIPLES, st.integers(0, 50), st.floats(0, 0.5))
def test_overlapping_quartiles_are_no_change(a: list[float], b: list[float], rounds: int, threshold: float) -> None:
    records = [measured("engine", t[1], low=t[0], high=t[2], rounds=rounds) for t in (a, b)]
    found = kinds(*records, threshold)
    if a[0] <= b[2] and b[0] <= a[2]:
        assert found == []
    opposite = {"slower": "faster", "faster": "slower"}
    assert kinds(*reversed(records), threshold) == [opposite[k] for k in found]
