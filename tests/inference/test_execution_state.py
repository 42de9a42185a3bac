"""The state machine of CUDA executors: every transition, and that none leaves a final state."""

from __future__ import annotations

import pytest

from hrnet_fast.inference.execution.execution_state import ExecutionState, State


def test_capture_at_the_second_call() -> None:
    states = ExecutionState()
    assert (states.state, states.tuning_due) == (State.EAGER, False)
    assert "first call" in str(states.reason)
    states.eager_call_finished()
    assert (states.state, states.tuning_due) == (State.EAGER, True)
    states.capture_finished()
    assert (states.state, states.tuning_due, states.reason) == (State.CAPTURED, False, None)


def test_no_capture() -> None:
    states = ExecutionState()
    states.capture_failed(RuntimeError("not permitted"))
    assert (states.state, states.tuning_due, states.reason) == (State.TUNED, False, "RuntimeError: not permitted")


def test_failed_tuning_is_not_repeated_by_calls() -> None:
    states = ExecutionState()
    states.eager_call_finished()
    states.tuning_failed(MemoryError("full"))
    states.eager_call_finished()
    assert (states.state, states.tuning_due, states.reason) == (State.EAGER, False, "MemoryError: full")
    states.capture_finished()  # prepare() may succeed later
    assert states.state is State.CAPTURED


@pytest.mark.parametrize("final", ["capture_finished", "capture_failed"])
def test_final_states(final: str) -> None:
    for name in ("capture_finished", "capture_failed", "tuning_failed", "eager_call_finished"):
        states = ExecutionState()
        getattr(states, final)(*[ValueError()] * (final == "capture_failed"))
        with pytest.raises(AssertionError, match="no transition"):
            getattr(states, name)(*[ValueError()] * name.endswith("failed"))
