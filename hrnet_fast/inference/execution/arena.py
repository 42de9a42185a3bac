"""The arena: channels-last buffers at fixed addresses, which a captured graph replays on, and adopted tensors.

A buffer that only operators with new results write adopts these results instead of having a place in the arena.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import View, writes

ALIGNMENT = 256  # bytes, as CUDA's allocator aligns


@dataclass(frozen=True)
class ArenaLayout:
    """Places of a plan's buffers.

    Attributes:
        offsets: into the arena, in bytes; None for a buffer without a place, which adopts tensors or is not used.
        bytes: size of the arena.
    """

    offsets: tuple[int | None, ...]
    bytes: int


def arena_layout(
    plan: Plan, adopted: Collection[int] = (), lifetimes: Mapping[int, tuple[int, int]] | None = None
) -> ArenaLayout:
    """Return places for all buffers except `adopted` ones.

    Args:
        plan: the plan.
        adopted: buffers without a place.
        lifetimes: first and last wave of the buffers that are used; None is the plan's.
    """
    if lifetimes is None:
        lifetimes = {k: (b.first, b.last) for k, b in enumerate(plan.buffers)}
    static = [k for k in range(len(plan.buffers)) if k not in adopted and k in lifetimes]
    size = plan.dtype.itemsize
    # Offsets are sums of sizes, so sizes are rounded up to the alignment.
    places, total = assign_offsets(
        [Interval(-(-plan.buffers[k].elements * size // ALIGNMENT) * ALIGNMENT, *lifetimes[k]) for k in static]
    )
    offsets: list[int | None] = [None] * len(plan.buffers)
    for k, place in zip(static, places, strict=True):
        offsets[k] = place
    return ArenaLayout(tuple(offsets), total)


def adoptable(plan: Plan) -> set[int]:
    """Return the buffers that every step writes as a whole, so that a result can become the buffer."""
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
        """Whether the view's buffer adopts tensors."""
        return self.layout.offsets[view.buffer] is None

    def put(self, view: View, result: Tensor) -> None:
        """Make `result` the view's map: the buffer adopts it, or it is copied to the buffer's place."""
        if self.adopts(view):
            # Operators may return any layout; steps expect channels-last.
            self._adopt(view, result.contiguous(memory_format=torch.channels_last))
        else:
            self[view].copy_(result)

    def write(self, view: View, source: Tensor) -> None:
        """Copy `source` to the view, in the dtype of the maps."""
        self.target(view).copy_(source)

    def target(self, view: View) -> Tensor:
        """Return memory to write a result to: the view, or a new tensor that the buffer adopts."""
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
        """Drop the tensor of an adopting buffer."""
        if self.layout.offsets[buffer] is None:
            self._buffers[buffer] = None

    def keeping(self, keep: bool) -> None:
        """Set whether adopted tensors are kept when others replace them. Drops those that are kept so far."""
        self._kept = [] if keep else None
