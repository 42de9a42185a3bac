"""The states of a CUDA executor and the transitions between them."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """How a CUDA executor runs its plan."""

    EAGER = "eager"
    """Launch by launch with PyTorch's tactics; nothing was measured."""
    TUNED = "tuned"
    """Launch by launch with measured tactics, as no graph could be captured."""
    CAPTURED = "captured"
    """One graph is replayed."""


class ExecutionState:
    """The state machine: EAGER becomes CAPTURED or TUNED, which are final.

    The first call of a shape runs in EAGER, as many shapes are called once. The next call tunes and captures. If tuning
    itself fails, for lack of memory above all, the state stays EAGER, and further calls do not try again.

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

    def eager_call_finished(self) -> None:
        """EAGER to EAGER: the next call tunes, unless that failed before."""
        self._require_eager()
        self.tuning_due = not self._failed

    def tuning_failed(self, error: Exception) -> None:
        """EAGER to EAGER: calls go on as before."""
        self._require_eager()
        self._failed, self.tuning_due, self.reason = True, False, _text(error)

    def capture_failed(self, error: Exception) -> None:
        """EAGER to TUNED: tactics were measured, and a call in the network cannot be captured."""
        self._require_eager()
        self.state, self.tuning_due, self.reason = State.TUNED, False, _text(error)

    def capture_finished(self) -> None:
        """EAGER to CAPTURED."""
        self._require_eager()
        self.state, self.tuning_due, self.reason = State.CAPTURED, False, None

    def _require_eager(self) -> None:
        assert self.state is State.EAGER, f"no transition leaves {self.state}"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
