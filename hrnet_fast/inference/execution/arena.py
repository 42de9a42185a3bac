"""Where a plan's maps lie: channels-last views of one static arena, and those that hold what the library returned.

Static addresses are what a captured graph replays on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.plan import Plan, View, writes

ALIGNMENT = 256  # bytes: the widest that a GPU's loads and its allocator know


@dataclass(frozen=True)
class ArenaLayout:
    """Places of a plan's buffers.

    Attributes:
        offsets: in bytes, into the arena; None for an adopted buffer, which has no place of its own.
        bytes: of the arena.
    """

    offsets: tuple[int | None, ...]
    bytes: int


def arena_layout(plan: Plan, adopted: Collection[int] = ()) -> ArenaLayout:
    """Return places for all buffers but the `adopted` ones."""
    static = [k for k in range(len(plan.buffers)) if k not in adopted]
    size = plan.dtype.itemsize
    lives = [plan.buffers[k] for k in static]
    # assign_offsets aligns to what it is given: sizes that are multiples give offsets that are.
    places, total = assign_offsets(
        [Interval(-(-b.elements * size // ALIGNMENT) * ALIGNMENT, b.first, b.last) for b in lives]
    )
    offsets: list[int | None] = [None] * len(plan.buffers)
    for k, place in zip(static, places, strict=True):
        offsets[k] = place
    return ArenaLayout(tuple(offsets), total)


def adoptable(plan: Plan) -> set[int]:
    """Return the buffers that every write fills: there, a tensor that the library returned can be the buffer."""
    partial = {
        view.buffer
        for step in plan.steps
        if (view := writes(step)) is not None and view.channels != plan.buffers[view.buffer].channels
    }
    return set(range(len(plan.buffers))) - partial


class ArenaMaps:
    """The buffers of a plan on a device, each [n, channels, height, width] in channels-last."""

    def __init__(self, plan: Plan, layout: ArenaLayout, device: torch.device, arena: Tensor | None = None) -> None:
        self.plan, self.layout = plan, layout
        self.arena = torch.empty(layout.bytes, dtype=torch.uint8, device=device) if arena is None else arena
        self._buffers: list[Tensor | None] = [
            None if offset is None else self._buffer(k, offset) for k, offset in enumerate(layout.offsets)
        ]
        self._kept: list[Tensor] | None = None

    def _buffer(self, k: int, offset: int) -> Tensor:
        b = self.plan.buffers[k]
        flat = self.arena[offset : offset + b.elements * self.plan.dtype.itemsize].view(self.plan.dtype)
        return flat.view(b.n, b.height, b.width, b.channels).permute(0, 3, 1, 2)

    def __getitem__(self, view: View) -> Tensor:
        """Return [n, view.channels, height, width], sharing memory with the buffer."""
        buffer = self._buffers[view.buffer]
        assert buffer is not None, f"buffer {view.buffer} holds nothing yet"
        return buffer if view.channels == buffer.shape[1] else buffer.narrow(1, view.offset, view.channels)

    def adopts(self, view: View) -> bool:
        """Whether the view's buffer has no place, and holds what it is given."""
        return self.layout.offsets[view.buffer] is None

    def put(self, view: View, result: Tensor) -> None:
        """Let `result` be the view's map: adopted where the buffer is, copied where it has a place."""
        if self.adopts(view):
            # Operators may return any layout; the steps behind expect one.
            self._adopt(view, result.contiguous(memory_format=torch.channels_last))
        else:
            self[view].copy_(result)

    def target(self, view: View) -> Tensor:
        """Return the map to write a result to: the view, or new memory that the buffer adopts."""
        if self.adopts(view):
            like = {"dtype": self.plan.dtype, "device": self.arena.device}
            shape = self.plan.shape(view)
            self._adopt(view, torch.empty(shape, memory_format=torch.channels_last, **like))  # type: ignore[call-overload]
        return self[view]

    def _adopt(self, view: View, tensor: Tensor) -> None:
        self._buffers[view.buffer] = tensor
        if self._kept is not None:
            self._kept.append(tensor)

    def release(self, buffer: int) -> None:
        """Let go of an adopted tensor."""
        if self.layout.offsets[buffer] is None:
            self._buffers[buffer] = None

    def keeping(self, keep: bool) -> None:
        """From now on keep adopted tensors even when others take their place, or not; those kept so far go."""
        self._kept = [] if keep else None
