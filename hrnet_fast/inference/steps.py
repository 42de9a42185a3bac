"""Steps of a plan, and the buffers, views and slots that they read and write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Buffer:
    """A map [n, channels, height, width] that is alive from wave `first` to wave `last`."""

    n: int
    channels: int
    height: int
    width: int
    first: int
    last: int

    @property
    def elements(self) -> int:
        return self.n * self.channels * self.height * self.width


@dataclass(frozen=True)
class View:
    """Channels `offset` .. `offset + channels` of a buffer."""

    buffer: int
    offset: int
    channels: int

    def overlaps(self, other: View) -> bool:
        """Whether both have a channel in common."""
        return (
            self.buffer == other.buffer
            and self.offset < other.offset + other.channels
            and other.offset < self.offset + self.channels
        )


@dataclass(frozen=True)
class Slot:
    """A tensor outside the buffers: the input (0), an output, an argument or a result of a call."""

    index: int


@dataclass(frozen=True)
class ImportStep:
    """Copy a tensor [N, C, H, W] to a buffer; images of bytes [N, H, W, C] become scale * x + shift per channel."""

    slot: int
    out: View
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ExportStep:
    """Copy a view to a tensor [N, C, H, W] of its own."""

    source: View
    slot: int


@dataclass(frozen=True)
class ConvStep:
    """1x1 (padding 0) or 3x3 (padding 1) convolution, bias, residual, and ReLU on channels relu[0] .. relu[1]."""

    weight: int
    source: View
    out: View
    residual: View | None
    kernel: int
    stride: int
    relu: tuple[int, int]


@dataclass(frozen=True)
class SumTerm:
    source: View
    mode: str
    align_corners: bool


@dataclass(frozen=True)
class SumStep:
    """Sum of terms, each resampled to the output's size; ReLU on all channels or none."""

    terms: tuple[SumTerm, ...]
    out: View
    relu: bool


@dataclass(frozen=True)
class PoolStep:
    """Mean over size x size windows, `size` apart."""

    source: View
    out: View
    size: int


@dataclass(frozen=True)
class CallStep:
    """Call a function. Arguments hold :class:`Slot` for tensors and references to the model's state."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    slot: int
    shape: tuple[int, ...]


Step = ImportStep | ExportStep | ConvStep | SumStep | PoolStep | CallStep


def groupable(step: Step) -> bool:
    """Whether ``grouped_conv3x3`` can compute a step: a 3x3 convolution of stride 1."""
    return isinstance(step, ConvStep) and (step.kernel, step.stride) == (3, 1)


def reads(step: Step) -> list[View]:
    """Return the views that a step reads."""
    if isinstance(step, ConvStep):
        return [step.source, *([step.residual] if step.residual else [])]
    if isinstance(step, SumStep):
        return [t.source for t in step.terms]
    if isinstance(step, (PoolStep, ExportStep)):
        return [step.source]
    return []


def writes(step: Step) -> View | None:
    """Return the view that a step writes."""
    return None if isinstance(step, (ExportStep, CallStep)) else step.out


def with_views(step: Step, change: Callable[[View], View]) -> Step:
    """Return the step with every view replaced by `change` of it."""
    if isinstance(step, CallStep):
        return step
    if isinstance(step, ExportStep):
        return replace(step, source=change(step.source))
    if isinstance(step, ImportStep):
        return replace(step, out=change(step.out))
    if isinstance(step, SumStep):
        return replace(step, terms=tuple(replace(t, source=change(t.source)) for t in step.terms), out=change(step.out))
    if isinstance(step, PoolStep):
        return replace(step, source=change(step.source), out=change(step.out))
    residual = None if step.residual is None else change(step.residual)
    return replace(step, source=change(step.source), out=change(step.out), residual=residual)


def slot_reads(step: Step) -> list[int]:
    """Return the slots that a step reads."""
    if isinstance(step, ImportStep):
        return [step.slot]
    if isinstance(step, CallStep):
        return [leaf.index for leaf in slot_leaves((step.args, step.kwargs))]
    return []


def slot_leaves(tree: Any) -> list[Slot]:
    """Return the slots in nested lists, tuples and mappings."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Slot)]
