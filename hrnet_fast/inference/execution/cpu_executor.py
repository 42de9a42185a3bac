"""Plans on CPUs: every run of steps between two calls is one C++ program, carried out by a team of threads.

The threads pass from wave to wave without leaving their parallel region: a network is one, not three hundred.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hrnet_fast.implementations import build_info
from hrnet_fast.inference.arguments import as_calls_read_it, calls_read_input, fill_in, named_leaves, own_copy
from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.plan import (
    CallStep,
    ConvStep,
    ExportStep,
    ImportStep,
    Plan,
    PoolStep,
    Step,
    SumStep,
    View,
    slot_leaves,
)
from hrnet_fast.inference.weights import WeightSpec

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_READ = (torch.float32, torch.bfloat16, torch.float16)  # what programs read and write, besides images of bytes


def available() -> bool:
    """Whether the compiled extension with the executor is there."""
    return "convolutions" in (build_info() or {})


def wins(dtype: torch.dtype) -> bool:
    """Whether the executor has a convolution kernel for this processor in `dtype`.

    Its portable kernel is for tests and for processors that no other kernel knows: there oneDNN's are faster.
    """
    if dtype not in DTYPES or not available():
        return False
    from hrnet_fast import _C

    return bool(_C.conv_kernel(DTYPES[dtype]) != "portable")


@dataclass(frozen=True)
class _Packing:
    """What decides how a weight lies in memory."""

    weight: WeightSpec
    stride: int
    relu: tuple[int, int]
    dense: bool


class Arenas:
    """Memory for maps: one arena for each call that runs at the same time, as large as the largest of them needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: list[Tensor] = []

    @contextlib.contextmanager
    def lent(self, size: int) -> Iterator[Tensor]:
        """Lend at least `size` bytes, with whatever is in them."""
        with self._lock:
            arena = self._spare.pop() if self._spare else None
        if arena is None or arena.numel() < size:
            del arena  # before there is a larger one in its place
            # On the CPU, whatever the caller's default device is.
            arena = torch.empty(size, dtype=torch.uint8, device="cpu")
        try:
            yield arena
        finally:
            with self._lock:
                self._spare.append(arena)


class PackedWeights:
    """Weights as the convolution kernels read them, and memory for maps: what executors of all shapes share."""

    def __init__(self, dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> None:
        self.dtype = dtype
        self._tensors = tensors
        self._packed: dict[_Packing, Any] = {}
        self._named: dict[str, Tensor] = {}
        self.arenas = Arenas()

    def get(self, packing: _Packing) -> Any:
        if packing not in self._packed:
            from hrnet_fast import _C

            weight, bias = self._values(packing.weight, self._tensors)
            self._packed[packing] = _C.PackedConv(
                DTYPES[self.dtype], weight, bias, packing.stride, packing.relu, packing.dense
            )
        return self._packed[packing]

    def named(self, name: str) -> Tensor:
        """A tensor that calls use, as it was when weights were read."""
        if name not in self._named:
            self._named[name] = _own(self._tensors[name])
        return self._named[name]

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Pack new values in the place of the old ones, all of them or none. No call may run meanwhile."""
        named = {name: _own(tensors[name]) for name in self._named}
        made = [(packed, self._values(packing.weight, tensors)) for packing, packed in self._packed.items()]
        self._tensors, self._named = tensors, named
        for packed, values in made:
            packed.set(*values)

    def _values(self, spec: WeightSpec, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        weight, bias = spec.make(tensors)
        return weight.float().contiguous(), bias.float().contiguous()


def _own(tensor: Tensor) -> Tensor:
    return own_copy(tensor, torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class _Segment:
    """Waves between two calls: a program, the slots it reads and those it makes (with their shapes)."""

    program: Any
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, tuple[int, ...]], ...]
    steps: tuple[int, ...]


class CpuExecutor:
    """Carries out a plan whose dtype is float32 or bfloat16; calls may come from several threads at once.

    Args:
        plan: the plan.
        weights: the model's, in the plan's dtype.
        outer: dtype of outputs.
    """

    def __init__(self, plan: Plan, weights: PackedWeights, outer: torch.dtype) -> None:
        self.plan, self.outer = plan, outer
        self._weights = weights
        sizes = [_map_bytes(plan, k) for k in range(len(plan.buffers))]
        lives = [Interval(size, b.first, b.last) for size, b in zip(sizes, plan.buffers, strict=True)]
        self._offsets, self._arena_bytes = assign_offsets(lives)
        calls = [(step.args, step.kwargs) for step in plan.steps if isinstance(step, CallStep)]
        self._called = {leaf.index for leaf in slot_leaves(calls)}
        self._names = {leaf.name for leaf in named_leaves([*calls, plan.output])}
        self._calls_read_input = calls_read_input(plan)
        self._segments: list[_Segment | int] = []  # or the number of a call
        pending: list[tuple[int, ...]] = []
        for wave in [*plan.waves, ()]:
            numbers = [i for i in wave if isinstance(plan.steps[i], CallStep)]
            if wave and not numbers:
                pending.append(wave)
                continue
            if pending:
                self._segments.append(self._segment(pending))
            self._segments += numbers
            pending = []
        self.refresh()

    def ready(self) -> None:
        """Nothing waits for a later call."""

    @property
    def arena_bytes(self) -> int:
        return self._arena_bytes

    def refresh(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Take the tensors that calls use from the weights, which are refreshed by themselves, before."""
        self._named = {name: self._weights.named(name) for name in self._names}

    def __call__(self, x: Tensor, copy: bool = True) -> Any:
        """Return the network's output for `x` of the plan's shape: new tensors, whatever `copy` says."""
        return self._run(x, None)

    def profile(self, x: Tensor) -> list[tuple[int, float]]:
        """Return (step, seconds) of one call in which every step runs by itself."""
        times: list[tuple[int, float]] = []
        self._run(x, times)
        return times

    def describe(self) -> list[str]:
        from hrnet_fast import _C

        kernel = _C.conv_kernel(DTYPES[self.plan.dtype])
        return [f"one C++ program, {kernel} convolutions, {torch.get_num_threads()} threads"]

    def _run(self, x: Tensor, times: list[tuple[int, float]] | None) -> Any:
        slots: list[Any] = [None] * self.plan.slots
        slots[0] = x = x.resolve_neg()
        # Whatever is called or returned sees the input as the model does; imports read what was given.
        given = as_calls_read_it(self.plan, x, torch.float32) if self._calls_read_input else x
        with torch.no_grad(), self._weights.arenas.lent(self._arena_bytes + 64) as arena:
            for segment in self._segments:
                if isinstance(segment, int):
                    self._call(segment, [given, *slots[1:]], slots, times)
                else:
                    self._run_segment(segment, slots, arena, times)
        return tree_map(self._as_outer, fill_in(self.plan.output, [given, *slots[1:]], self._named, torch.float32))

    def _as_outer(self, leaf: Any) -> Any:
        return leaf.to(self.outer) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def _call(self, number: int, given: list[Any], slots: list[Any], times: list[tuple[int, float]] | None) -> None:
        step = self.plan.steps[number]
        assert isinstance(step, CallStep)
        start = time.perf_counter()
        args, kwargs = (fill_in(part, given, self._named, torch.float32) for part in (step.args, step.kwargs))
        slots[step.slot] = step.function(*args, **kwargs)
        if times is not None:
            times.append((number, time.perf_counter() - start))

    def _run_segment(
        self, segment: _Segment, slots: list[Any], arena: Tensor, times: list[tuple[int, float]] | None
    ) -> None:
        outputs = [torch.empty(shape, dtype=self._slot_dtype(slot), device="cpu") for slot, shape in segment.outputs]
        inputs = [self._readable(slots[i], i) for i in segment.inputs]
        threads = torch.get_num_threads()
        if times is None:
            segment.program.run(inputs, outputs, arena, threads)
        else:
            found = segment.program.profile(inputs, outputs, arena, threads)
            times += [(segment.steps[entry[0]], entry[-1]) for entry in found]
        for (slot, _), tensor in zip(segment.outputs, outputs, strict=True):
            slots[slot] = tensor

    def _readable(self, tensor: Tensor, slot: int) -> Tensor:
        """A tensor as programs read it. Bytes are the engine's images; those that a call made are numbers."""
        image = slot == 0 and tensor.dtype == torch.uint8
        tensor = tensor if image or tensor.dtype in _READ else tensor.float()
        return tensor.resolve_neg()

    def _slot_dtype(self, slot: int) -> torch.dtype:
        direct = slot not in self._called and self.outer in _READ
        return self.outer if direct else torch.float32

    def _segment(self, waves: list[tuple[int, ...]]) -> _Segment:
        from hrnet_fast import _C

        plan = self.plan
        program = _C.Program(DTYPES[plan.dtype])
        steps = [plan.steps[i] for wave in waves for i in wave]
        numbers = [
            program.buffer(offset, b.n, b.height, b.width, b.channels)
            for b, offset in zip(plan.buffers, self._offsets, strict=True)
        ]

        def place(view: View) -> tuple[int, int]:
            return numbers[view.buffer], view.offset

        inputs = sorted({step.slot for step in steps if isinstance(step, ImportStep)})
        outputs = {step.slot: plan.shape(step.source) for step in steps if isinstance(step, ExportStep)}
        order = list(outputs)
        for k, wave in enumerate(waves):
            for i in wave:
                self._add(program, k, plan.steps[i], place, inputs, order)
        program.finish(self._arena_bytes)
        return _Segment(program, tuple(inputs), tuple(outputs.items()), tuple(i for wave in waves for i in wave))

    def _add(self, program: Any, wave: int, step: Step, place: Any, inputs: list[int], outputs: list[int]) -> None:
        if isinstance(step, ImportStep):
            scale, shift = (list(step.scale), list(step.shift)) if step.scale and step.shift else (None, None)
            program.input(wave, place(step.out), inputs.index(step.slot), step.out.channels, scale, shift)
        elif isinstance(step, ExportStep):
            program.output(wave, place(step.source), step.source.channels, outputs.index(step.slot))
        elif isinstance(step, ConvStep):
            dense = step.source.channels == self.plan.buffers[step.source.buffer].channels
            packing = _Packing(self.plan.weights[step.weight], step.stride, step.relu, dense)
            residual = None if step.residual is None else place(step.residual)
            program.conv(wave, self._weights.get(packing), place(step.source), place(step.out), residual)
        elif isinstance(step, SumStep):
            terms = [(*place(t.source), t.mode, t.align_corners) for t in step.terms]
            program.sum(wave, terms, place(step.out), step.out.channels, step.relu)
        elif isinstance(step, PoolStep):
            program.avg_pool(wave, place(step.source), place(step.out), step.out.channels, step.size)


def _map_bytes(plan: Plan, buffer: int) -> int:
    from hrnet_fast import _C

    b = plan.buffers[buffer]
    return int(_C.map_bytes(DTYPES[plan.dtype], b.n, b.height, b.width, b.channels))
