"""The state machine of training steps: when a shape is captured, given up, dropped; and the account."""

from __future__ import annotations

from typing import Any

from hrnet_fast.training.step_policy import ATTEMPTS, CHANGES, LONG, REMEMBERED, Action, StepPolicy


def call(policy: StepPolicy, key: Any, place: Any = "whole", early: str = "", works: bool = True) -> str:
    """Make one call as a step does; return what it did."""
    action, reason = policy.action(key, place, lambda: f"shape {key}", early)
    if action is Action.CAPTURE:
        policy.inputs(key, list)
        if not works:
            policy.ran_eagerly(key, policy.capture_failed(key, "broken"))
            return "failed"
        policy.captured(key, place, object())
    if action in (Action.CAPTURE, Action.REPLAY):
        policy.graph(key, place)
        policy.replayed(key)
    else:
        policy.ran_eagerly(key, reason)
    return action.value


def calls(policy: StepPolicy, key: Any, count: int, **options: Any) -> list[str]:
    return [call(policy, key, **options) for _ in range(count)]


def test_a_shape_waits_is_captured_and_replayed() -> None:
    policy = StepPolicy(3, 8)
    assert calls(policy, 1, 5) == ["wait", "wait", "capture", "replay", "replay"]
    assert call(policy, 2) == "wait"
    assert [call(policy, 1, place) for place in ("first", "last", "first")] == ["capture", "capture", "replay"]
    report = policy.report()
    assert (report.captures, report.replays, report.eager) == (3, 6, 3)
    assert report.reasons == (("a shape is captured at its call number 3", 3),)
    assert [(s.shape, s.captured) for s in report.shapes] == [("shape 2", ()), ("shape 1", ("whole", "first", "last"))]


def test_nothing_is_captured_too_early() -> None:
    policy = StepPolicy(1, 8)
    assert calls(policy, 1, 2, early="no update yet") == ["wait", "wait"]
    assert calls(policy, 1, 2) == ["capture", "replay"]


def test_a_failing_shape_is_given_up_alone() -> None:
    policy = StepPolicy(1, 8)
    assert calls(policy, 1, ATTEMPTS + 2, works=False) == ["failed"] * ATTEMPTS + ["eager"] * 2
    assert policy.report().reasons == (("broken", ATTEMPTS + 2),)
    assert calls(policy, 2, 2) == ["capture", "replay"]
    policy.reset()
    assert call(policy, 1) == "capture"


def test_the_least_recently_used_shape_is_dropped() -> None:
    policy = StepPolicy(1, 2)
    assert [call(policy, key) for key in (1, 2, 1, 3, 1)] == ["capture", "capture", "replay", "capture", "replay"]
    assert call(policy, 2) == "capture"  # and drops 3
    assert [call(policy, key) for key in (1, 2)] == ["replay", "replay"]
    assert policy.report().evictions == 2


def test_changes_drop_graphs_and_too_many_end_captures() -> None:
    policy = StepPolicy(1, 8)
    assert not policy.changed("nothing was captured")
    for _ in range(2 * CHANGES):  # each after many replays
        assert calls(policy, 1, LONG) == ["capture"] + ["replay"] * (LONG - 1)
        assert policy.changed("momentum changed")
    for _ in range(CHANGES - 1):
        assert call(policy, 1) == "capture"
        assert policy.changed("momentum changed")
    assert call(policy, 1) == "eager"
    assert "momentum changed, again and again" in str(policy.report())
    policy.reset()
    assert call(policy, 1) == "capture"


def test_few_shapes_are_remembered() -> None:
    policy = StepPolicy(2, 8)
    for key in range(REMEMBERED + 3):
        call(policy, key)
    assert len(policy.report().shapes) == REMEMBERED
    assert call(policy, 0) == "wait"
