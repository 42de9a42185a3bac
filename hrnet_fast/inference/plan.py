"""The plan IR: a network for one input shape as steps over numbered buffers. It is data, without tensors or a device.

Executors run it; :mod:`hrnet_fast.inference.execution.evaluator` runs it in plain PyTorch and is their oracle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from hrnet_fast.errors import InputError
from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.weights import WeightSpec


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


@dataclass(frozen=True)
class Plan:
    """A network for one input shape.

    Attributes:
        input_shape: [N, C, H, W].
        dtype: of the maps.
        buffers, weights: what steps refer to by number.
        steps: in an order in which they can run.
        waves: numbers of steps that do not depend on each other, wave after wave.
        output: what the network returns, with tensors as :class:`Slot`.
        slots: number of slots.
    """

    input_shape: tuple[int, ...]
    dtype: torch.dtype
    buffers: tuple[Buffer, ...]
    weights: tuple[WeightSpec, ...]
    steps: tuple[Step, ...]
    waves: tuple[tuple[int, ...], ...]
    output: Any
    slots: int

    def with_images(self, scale: tuple[float, ...], shift: tuple[float, ...]) -> Plan:
        """Return the plan for images of bytes [N, H, W, C]; scale * x + shift is the network's input.

        Raises:
            InputError: the network does not begin with a convolution of the plan's own.
        """
        if not any(isinstance(s, ImportStep) and s.slot == 0 for s in self.steps):
            raise InputError("Engine: normalize needs a network that begins with a 1x1 or 3x3 convolution.")
        steps = [
            replace(s, scale=scale, shift=shift) if isinstance(s, ImportStep) and s.slot == 0 else s for s in self.steps
        ]
        return replace(self, steps=tuple(steps))

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Scale and shift per channel of images of bytes; None for floating inputs."""
        found = (s for s in self.steps if isinstance(s, ImportStep) and s.slot == 0)
        return next(((s.scale, s.shift) for s in found if s.scale is not None and s.shift is not None), None)

    def example_input(self, device: torch.device | None = None) -> torch.Tensor:
        """Return zeros of the shape and dtype of the input: [N, C, H, W] in float32 or wider, or bytes [N, H, W, C]."""
        n, c, h, w = self.input_shape
        if self.normalization is not None:
            return torch.zeros((n, h, w, c), dtype=torch.uint8, device=device)
        return torch.zeros((n, c, h, w), dtype=torch.promote_types(self.dtype, torch.float32), device=device)

    def parallel_convs(self) -> list[list[int]]:
        """Return the 3x3 convolutions of stride 1 of each wave that has several: one grouped launch computes them."""
        found = [[k for k in wave if groupable(self.steps[k])] for wave in self.waves]
        return [group for group in found if len(group) > 1]

    def launches(self, grouped: bool = False) -> int:
        """Return the number of launches; `grouped` counts parallel 3x3 convolutions of the branches as one."""
        saved = sum(len(group) - 1 for group in self.parallel_convs()) if grouped else 0
        return len(self.steps) - saved

    @property
    def flops(self) -> int:
        """Two per multiply-add of the convolution steps; functions that are called are not counted."""
        return sum(self.step_flops(step) for step in self.steps)

    @property
    def bytes(self) -> int:
        """Least bytes moved: every map and weight that a step reads or writes, once; calls are not counted."""
        return sum(self.step_bytes(step) for step in self.steps)

    @property
    def peak_memory(self) -> int:
        """Bytes of the arena that holds each buffer for its lifetime."""
        size = self.dtype.itemsize
        return assign_offsets([Interval(b.elements * size, b.first, b.last) for b in self.buffers])[1]

    def step_flops(self, step: Step) -> int:
        if not isinstance(step, ConvStep):
            return 0
        out, into, *kernel = self.weights[step.weight].shape
        return 2 * out * into * kernel[0] * kernel[1] * self._pixels(step.out)

    def step_bytes(self, step: Step) -> int:
        maps = [v for v in (*reads(step), writes(step)) if v is not None]
        moved = sum(v.channels * self._pixels(v) for v in maps)
        if isinstance(step, ConvStep):
            out, into, *kernel = self.weights[step.weight].shape
            moved += out * into * kernel[0] * kernel[1]
        return moved * self.dtype.itemsize

    def shape(self, view: View) -> tuple[int, int, int, int]:
        b = self.buffers[view.buffer]
        return b.n, view.channels, b.height, b.width

    def _pixels(self, view: View) -> int:
        b = self.buffers[view.buffer]
        return b.n * b.height * b.width

    def describe(self, step: Step) -> str:
        """Return one line about a step."""
        out = writes(step)
        made = "x".join(map(str, self.shape(out)[1:])) if out else ""
        if isinstance(step, ConvStep):
            extra = " + residual" * (step.residual is not None) + f" relu[{step.relu[0]}:{step.relu[1]}]" * any(
                step.relu
            )
            taken = "x".join(map(str, self.shape(step.source)[1:]))
            return f"conv{step.kernel}x{step.kernel}/{step.stride} {taken} -> {made}{extra}"
        if isinstance(step, SumStep):
            terms = (f"{t.mode} {'x'.join(map(str, self.shape(t.source)[1:]))}" for t in step.terms)
            return f"sum({', '.join(terms)}) -> {made}{' relu' * step.relu}"
        if isinstance(step, PoolStep):
            return f"mean {step.size}x{step.size} -> {made}"
        if isinstance(step, CallStep):
            function = getattr(step.function, "function", step.function)  # without the tracer's wrappers
            return f"call {getattr(function, '__name__', function)} -> {'x'.join(map(str, step.shape))}"
        return f"{'import' if isinstance(step, ImportStep) else 'export'} slot {step.slot} {made}".rstrip()

    def __str__(self) -> str:
        kinds = Counter(type(step).__name__.removesuffix("Step").lower() for step in self.steps)
        lines = [
            f"{len(self.steps)} steps in {len(self.waves)} waves ({', '.join(f'{n} {k}' for k, n in kinds.items())}), "
            f"{self.launches(grouped=True)} launches with grouped branches; input {list(self.input_shape)}",
            f"{self.flops / 2e9:.2f} G multiply-adds, {self.bytes / 2**20:.1f} MiB moved, "
            f"{self.peak_memory / 2**20:.1f} MiB of maps at once ({str(self.dtype).removeprefix('torch.')})",
        ]
        for k, wave in enumerate(self.waves):
            for i in wave:
                target = writes(self.steps[i])
                where = f" @{target.buffer}+{target.offset}" if target else ""
                lines.append(f"  {k:4d}  {self.describe(self.steps[i])}{where}")
        return "\n".join(lines)

    def to_dot(self) -> str:
        """Return the plan as a Graphviz digraph: nodes are steps, and edges are the values between them."""
        lines = ["digraph plan {", "  rankdir=TB; node [shape=box, fontname=monospace];"]
        writers: dict[tuple[int, int], int] = {}
        slots: dict[int, int] = {}
        for wave in self.waves:
            lines.append("  { rank=same; " + "; ".join(f"s{i}" for i in wave) + " }")
            made: list[tuple[int, View]] = []
            for i in wave:
                step = self.steps[i]
                lines.append(f'  s{i} [label="{self.describe(step)}"];')
                sources = {
                    writers[view.buffer, channel]
                    for view in reads(step)
                    for channel in range(view.offset, view.offset + view.channels)
                }
                sources |= {slots[s] for s in slot_reads(step) if s in slots}
                lines += [f"  s{source} -> s{i};" for source in sorted(sources)]
                target = writes(step)
                if target is not None:
                    made.append((i, target))
                if isinstance(step, (ExportStep, CallStep)):
                    slots[step.slot] = i
            for i, view in made:
                writers |= {(view.buffer, c): i for c in range(view.offset, view.offset + view.channels)}
        return "\n".join([*lines, "}"])


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
