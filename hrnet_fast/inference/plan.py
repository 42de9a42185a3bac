"""The plan IR: a network for one input shape as steps over numbered buffers. It is data, without tensors or a device.

Executors run it; :mod:`hrnet_fast.inference.execution.evaluator` runs it in plain PyTorch and is their oracle.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch

from hrnet_fast.checks import check_shape
from hrnet_fast.errors import InputError
from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.planning.tracer import InputShape, has_several, input_shapes
from hrnet_fast.inference.steps import (
    Buffer,
    CallStep,
    ConvStep,
    ExportStep,
    ImportStep,
    PoolStep,
    Step,
    SumStep,
    View,
    groupable,
    reads,
    slot_reads,
    writes,
)
from hrnet_fast.inference.weights import WeightSpec


def check_input_shape(what: str, shape: Any) -> InputShape:
    """Return a shape [N, C, H, W], or the shapes of several inputs, as tuples; raise InputError for others."""
    if isinstance(shape, tuple) and shape and isinstance(shape[0], tuple):
        return tuple(check_shape(what, one) for one in shape)
    return check_shape(what, shape)


@dataclass(frozen=True)
class Plan:
    """A network for one input shape.

    Attributes:
        input_shape: [N, C, H, W], or the shapes of several inputs.
        dtype: of the maps.
        buffers, weights: what steps refer to by number.
        steps: in an order in which they can run.
        waves: numbers of steps that do not depend on each other, wave after wave.
        output: what the network returns, with tensors as :class:`Slot`.
        slots: number of slots.
    """

    input_shape: InputShape
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

    @functools.cached_property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Scale and shift per channel of images of bytes; None for floating inputs."""
        found = (s for s in self.steps if isinstance(s, ImportStep) and s.slot == 0)
        return next(((s.scale, s.shift) for s in found if s.scale is not None and s.shift is not None), None)

    @property
    def batch(self) -> int:
        """The number of images."""
        return input_shapes(self.input_shape)[0][0]

    def example_input(self, device: torch.device | None = None) -> Any:
        """Return zeros of the shape and dtype of the input: [N, C, H, W] in float32 or wider, or bytes [N, H, W, C].

        Several inputs are a tuple.
        """
        shapes = input_shapes(self.input_shape)
        if self.normalization is not None:
            n, c, h, w = shapes[0]
            return torch.zeros((n, h, w, c), dtype=torch.uint8, device=device)
        wide = torch.promote_types(self.dtype, torch.float32)
        made = tuple(torch.zeros(shape, dtype=wide, device=device) for shape in shapes)
        return made if has_several(self.input_shape) else made[0]

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
