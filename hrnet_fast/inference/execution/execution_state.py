"""The states of a CUDA executor and the transitions between them."""

from __future__ import annotations

import enum

ATTEMPTS = 3  # captures of a shape


class State(enum.Enum):
    """How a CUDA executor runs its plan."""

    EAGER = "eager"
    """Launch by launch with PyTorch's tactics; nothing was measured."""
    TUNED = "tuned"
    """Launch by launch with measured tactics, as no graph could be captured."""
    CAPTURED = "captured"
    """One graph is replayed."""


class ExecutionState:
    """The state machine: EAGER becomes CAPTURED, which is final, or TUNED, which becomes CAPTURED at a later attempt.

    The first call of a shape runs in EAGER, as many shapes are called once. The next call tunes and captures. A failed
    capture is tried again by the next calls, :data:`ATTEMPTS` times in all, as another thread may have broken it. If
    tuning itself fails, for lack of memory above all, the state stays, and further calls do not try again.

    Attributes:
        state: the present state.
        reason: why the state is not CAPTURED; None in CAPTURED.
        tuning_due: whether the next call has to tune.
    """

    def __init__(self) -> None:
        self.state = State.EAGER
        self.reason: str | None = "this is the first call of this shape"
        self.tuning_due = False
        self._failed = False
        self._attempts = 0

    def eager_call_finished(self) -> None:
        """EAGER to EAGER: the next call tunes, unless that failed before."""
        self._require(State.EAGER)
        self.tuning_due = not self._failed

    def tuning_failed(self, error: Exception) -> None:
        """The state stays: calls go on as before."""
        self._require(State.EAGER, State.TUNED)
        self._failed, self.tuning_due, self.reason = True, False, _text(error)

    def capture_failed(self, error: Exception) -> None:
        """EAGER or TUNED to TUNED: tactics were measured, and there is no graph."""
        self._require(State.EAGER, State.TUNED)
        self._attempts += 1
        self.state, self.tuning_due = State.TUNED, self._attempts < ATTEMPTS
        self.reason = _text(error) + "; the next call tries again" * self.tuning_due

    def capture_finished(self) -> None:
        """EAGER or TUNED to CAPTURED."""
        self._require(State.EAGER, State.TUNED)
        self.state, self.tuning_due, self.reason = State.CAPTURED, False, None

    def _require(self, *states: State) -> None:
        assert self.state in states, f"no such transition leaves {self.state}"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
