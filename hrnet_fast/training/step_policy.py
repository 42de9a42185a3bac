"""Decides which calls of a training step run eagerly, are captured, or replay a graph; and keeps the account."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

ATTEMPTS = 3  # captures of one shape that may fail
CHANGES = 3  # changes of model or optimizer, one after the other, behind which no graph lived long
LONG = 10  # replays between two changes, from which capturing again pays
REMEMBERED = 256  # shapes


class Action(enum.Enum):
    """What one call does."""

    WAIT = "wait"  # eager, as it is too early for a capture
    EAGER = "eager"  # eager, as there is no capture
    CAPTURE = "capture"
    REPLAY = "replay"


@dataclass(frozen=True)
class ShapeReport:
    """One shape of inputs in a :class:`StepReport`.

    Attributes:
        shape: shapes, dtypes and constants of images and targets.
        captured: the micro-batches that have a graph: the whole step, or the first, the middle or the last.
        replays, eager: calls.
        reason: why the last eager call was one.
    """

    shape: str
    captured: tuple[str, ...]
    replays: int
    eager: int
    reason: str


@dataclass(frozen=True)
class StepReport:
    """What calls of a training step did; ``str(report)`` is a text.

    Attributes:
        shapes: those that were called lately, the last one at the end.
        captures: graphs that were made.
        replays, eager: calls in all.
        evictions: shapes whose graphs were dropped for others'.
        reasons: why calls were eager, with their number, most frequent first.
    """

    shapes: tuple[ShapeReport, ...]
    captures: int
    replays: int
    eager: int
    evictions: int
    reasons: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        lines = [f"{self.replays} replays of {self.captures} captured graphs, {self.eager} eager calls"]
        if self.evictions:
            lines.append(f"  {self.evictions} shapes were evicted: max_graphs is too small for all")
        for one in self.shapes:
            state = f"captured ({', '.join(one.captured)})" if one.captured else "eager"
            why = f": {one.reason}" if one.reason and not one.captured else ""
            lines.append(f"  {one.shape}: {state}, {one.replays} replays, {one.eager} eager calls{why}")
        lines += [f"  {count} eager calls: {reason}" for reason, count in self.reasons]
        return "\n".join(lines)


@dataclass
class _Shape:
    text: str
    seen: int = 0
    failed: int = 0
    reason: str = ""
    inputs: Any = None
    graphs: dict[Hashable, Any] = field(default_factory=dict)
    replays: int = 0
    eager: int = 0


class StepPolicy:
    """The state machine of a training step.

    A shape is captured at its `capture_at`-th call, as many shapes come once. A capture that fails is tried again by
    the next calls, :data:`ATTEMPTS` times in all, as another thread may have broken it. A change of what graphs have
    as constants drops all of them; after :data:`CHANGES` changes in a row with fewer than :data:`LONG` replays
    between, nothing is captured any more.

    Args:
        capture_at: the call of a shape that captures it.
        max_graphs: shapes that have graphs at the same time; the least recently used goes first.
    """

    def __init__(self, capture_at: int, max_graphs: int) -> None:
        self._capture_at, self._max_graphs = capture_at, max_graphs
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()
        self._short_lived, self._replays_since_change = 0, 0
        self._changed = ""
        self._reasons: Counter[str] = Counter()
        self._captures = self._replays = self._eager = self._evictions = 0

    def action(self, key: Hashable, place: Hashable, text: Callable[[], str], early: str = "") -> tuple[Action, str]:
        """Count a call and return what it does; for an eager one, why.

        Args:
            key: all that tells one shape from another.
            place: of the micro-batch in its step; each has a graph of its own.
            text: the shape, for reports.
            early: why nothing may be captured yet, or empty.
        """
        shape = self._shape(key, text)
        shape.seen += 1
        if place in shape.graphs:
            return Action.REPLAY, ""
        if self._short_lived >= CHANGES:
            return Action.EAGER, f"{self._changed}, again and again; nothing is captured before reset()"
        if shape.failed >= ATTEMPTS:
            return Action.EAGER, shape.reason
        if shape.seen < self._capture_at:
            return Action.WAIT, f"a shape is captured at its call number {self._capture_at}"
        if early:
            return Action.WAIT, early
        return Action.CAPTURE, ""

    def inputs(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the inputs that the shape's graphs read, made at the first call."""
        shape = self._shapes[key]
        if shape.inputs is None:
            shape.inputs = make()
        return shape.inputs

    def graph(self, key: Hashable, place: Hashable) -> Any:
        """Return the graph to replay."""
        return self._shapes[key].graphs[place]

    def captured(self, key: Hashable, place: Hashable, graph: Any) -> None:
        """Keep a new graph, and drop those of the least recently used shape if there are too many."""
        self._shapes[key].graphs[place] = graph
        self._captures += 1
        holders = [k for k, shape in self._shapes.items() if shape.graphs]
        for old in holders[: max(0, len(holders) - self._max_graphs)]:
            self._drop(self._shapes[old])
            self._evictions += 1

    def capture_failed(self, key: Hashable, reason: str) -> str:
        """Count a failed capture; return the reason."""
        shape = self._shapes[key]
        shape.failed += 1
        shape.reason = reason
        if not shape.graphs:
            shape.inputs = None
        return reason

    def replayed(self, key: Hashable) -> None:
        """Count a replay."""
        self._shapes[key].replays += 1
        self._replays += 1
        self._replays_since_change += 1

    def ran_eagerly(self, key: Hashable | None, reason: str) -> None:
        """Count an eager call; `key` is None where the inputs have none."""
        self._eager += 1
        self._reasons[reason] += 1
        if key in self._shapes:
            shape = self._shapes[key]
            shape.eager += 1
            shape.reason = reason

    def changed(self, reason: str) -> bool:
        """Drop all graphs, as something that they have as a constant changed. Return whether there were any."""
        if not any(shape.graphs for shape in self._shapes.values()):
            return False
        self._short_lived = self._short_lived + 1 if self._replays_since_change < LONG else 1
        self._replays_since_change = 0
        self._changed = reason
        for shape in self._shapes.values():
            self._drop(shape)
        return True

    def reset(self) -> None:
        """Forget all shapes, their graphs and failures. The account stays."""
        self._shapes.clear()
        self._short_lived = self._replays_since_change = 0

    def report(self) -> StepReport:
        """Return the account."""
        shapes = tuple(
            ShapeReport(s.text, tuple(map(str, s.graphs)), s.replays, s.eager, s.reason) for s in self._shapes.values()
        )
        reasons = tuple(self._reasons.most_common())
        return StepReport(shapes, self._captures, self._replays, self._eager, self._evictions, reasons)

    def _shape(self, key: Hashable, text: Callable[[], str]) -> _Shape:
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape(text())
            if len(self._shapes) > REMEMBERED:
                self._shapes.popitem(last=False)
        self._shapes.move_to_end(key)
        return shape

    @staticmethod
    def _drop(shape: _Shape) -> None:
        shape.graphs, shape.inputs, shape.seen, shape.failed = {}, None, 0, 0
