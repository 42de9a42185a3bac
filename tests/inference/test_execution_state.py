"""The state machine of CUDA executors: every transition, and that none leaves the final state."""

from __future__ import annotations

import pytest

from hrnet_fast.inference.execution.execution_state import ATTEMPTS, ExecutionState, State


def test_capture_at_the_second_call() -> None:
    states = ExecutionState()
    assert (states.state, states.tuning_due) == (State.EAGER, False)
    assert "first call" in str(states.reason)
    states.eager_call_finished()
    assert (states.state, states.tuning_due) == (State.EAGER, True)
    states.capture_finished()
    assert (states.state, states.tuning_due, states.reason) == (State.CAPTURED, False, None)


def test_a_failed_capture_is_tried_again_a_few_times() -> None:
    states = ExecutionState()
    for attempt in range(1, ATTEMPTS + 1):
        states.capture_failed(RuntimeError("not permitted"))
        assert (states.state, states.tuning_due) == (State.TUNED, attempt < ATTEMPTS)
        assert str(states.reason).startswith("RuntimeError: not permitted")
        assert ("tries again" in str(states.reason)) == states.tuning_due
    states.capture_finished()
    assert (states.state, states.tuning_due, states.reason) == (State.CAPTURED, False, None)


def test_no_memory_at_another_attempt() -> None:
    states = ExecutionState()
    states.capture_failed(RuntimeError("not permitted"))
    states.tuning_failed(MemoryError("full"))
    assert (states.state, states.tuning_due, states.reason) == (State.TUNED, False, "MemoryError: full")


def test_failed_tuning_is_not_repeated_by_calls() -> None:
    states = ExecutionState()
    states.eager_call_finished()
    states.tuning_failed(MemoryError("full"))
    states.eager_call_finished()
    assert (states.state, states.tuning_due, states.reason) == (State.EAGER, False, "MemoryError: full")
    states.capture_finished()  # prepare() may succeed later
    assert states.state is State.CAPTURED


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (State.TUNED, "eager_call_finished"),
        *((State.CAPTURED, e) for e in ("eager_call_finished", "capture_finished", "capture_failed", "tuning_failed")),
    ],
)
def test_what_never_happens(state: State, event: str) -> None:
    states = ExecutionState()
    states.state = state
    with pytest.raises(AssertionError, match="no such transition"):
        getattr(states, event)(*[ValueError()] * event.endswith("failed"))
