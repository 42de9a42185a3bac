"""The CPU executor: the steps between two calls are one C++ program, which a team of threads runs.

The threads go from wave to wave inside one parallel region.
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

from hrnet_fast.implementations import build_info
from hrnet_fast.inference.buffer_assignment import Interval, assign_offsets
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.slots import Slots, normalization_tensors, own_copy, state_names
from hrnet_fast.inference.steps import (
    CallStep,
    ConvStep,
    ExportStep,
    ImportStep,
    PoolStep,
    Step,
    SumStep,
    View,
    slot_reads,
)
from hrnet_fast.inference.weights import WeightSpec

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_READ = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of programs' inputs and outputs, besides bytes


def available() -> bool:
    """Whether the compiled extension was built with the CPU program."""
    return "convolutions" in (build_info() or {})


def wins(dtype: torch.dtype) -> bool:
    """Whether the CPU program has a convolution kernel for this processor in `dtype`.

    Its portable kernel is slower than oneDNN's and serves tests.
    """
    if dtype not in DTYPES or not available():
        return False
    from hrnet_fast import _C

    return bool(_C.conv_kernel(DTYPES[dtype]) != "portable")


@dataclass(frozen=True)
class _Packing:
    """What decides the format of a packed weight."""

    weight: WeightSpec
    stride: int
    relu: tuple[int, int]
    dense: bool


class Arenas:
    """Memory for maps: one arena for each concurrent call, as large as the largest call needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: list[Tensor] = []

    @contextlib.contextmanager
    def lent(self, size: int) -> Iterator[Tensor]:
        """Yield at least `size` bytes of uninitialised memory."""
        with self._lock:
            arena = self._spare.pop() if self._spare else None
        if arena is None or arena.numel() < size:
            del arena  # frees memory before the larger one is allocated
            arena = torch.empty(size, dtype=torch.uint8, device="cpu")
        try:
            yield arena
        finally:
            with self._lock:
                self._spare.append(arena)


class PackedWeights:
    """Weights packed for the convolution kernels, and memory for maps, shared by the executors of all input shapes."""

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
        """Return a copy of a tensor that calls read, from when weights were read."""
        if name not in self._named:
            self._named[name] = _own(self._tensors[name])
        return self._named[name]

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Pack new values in place of the old ones, all or none. No call may run meanwhile."""
        named = {name: _own(tensors[name]) for name in self._named}
        made = [(packed, self._values(packing.weight, tensors)) for packing, packed in self._packed.items()]
        self._tensors, self._named = tensors, named
        for packed, values in made:
            packed.set(*values)

    def _values(self, spec: WeightSpec, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        weight, bias = spec.make(tensors)
        return weight.to("cpu", torch.float32).contiguous(), bias.to("cpu", torch.float32).contiguous()


def _own(tensor: Tensor) -> Tensor:
    return own_copy(tensor, torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class _Segment:
    """The waves between two calls: a program, the slots it reads, and the slots it writes with their shapes."""

    program: Any
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, tuple[int, ...]], ...]
    steps: tuple[int, ...]


class CpuExecutor:
    """Runs a plan whose dtype is float32 or bfloat16. Several threads may call it at once.

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
        self._called = {slot for step in plan.steps if isinstance(step, CallStep) for slot in slot_reads(step)}
        self._normalization = normalization_tensors(plan, torch.device("cpu"), torch.float32)
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
        """Do nothing: everything is prepared in the constructor."""

    @property
    def arena_bytes(self) -> int:
        return self._arena_bytes

    def refresh(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Read the tensors that calls use from the shared weights, which have been refreshed before."""
        self._state = {name: self._weights.named(name) for name in state_names(self.plan)}

    def __call__(self, x: Tensor | tuple[Tensor, ...], copy: bool = True) -> Any:
        """Return the network's output for `x` of the plan's shape, always in new tensors."""
        return self._run(x, None)

    def profile(self, x: Tensor | tuple[Tensor, ...]) -> list[tuple[int, float]]:
        """Return (step, seconds) of one call, with every step timed by itself."""
        times: list[tuple[int, float]] = []
        self._run(x, times)
        return times

    def describe(self) -> list[str]:
        from hrnet_fast import _C

        kernel = _C.conv_kernel(DTYPES[self.plan.dtype])
        return [f"one C++ program, {kernel} convolutions, {torch.get_num_threads()} threads"]

    def _run(self, x: Tensor | tuple[Tensor, ...], times: list[tuple[int, float]] | None) -> Any:
        slots = Slots(self.plan, x, self._state, torch.float32, self._normalization)
        with torch.no_grad(), self._weights.arenas.lent(self._arena_bytes + 64) as arena:
            for segment in self._segments:
                if isinstance(segment, int):
                    self._call(segment, slots, times)
                else:
                    self._run_segment(segment, slots, arena, times)
        return slots.output(self.outer)

    def _call(self, number: int, slots: Slots, times: list[tuple[int, float]] | None) -> None:
        step = self.plan.steps[number]
        assert isinstance(step, CallStep)
        start = time.perf_counter()
        slots.call(step)
        if times is not None:
            times.append((number, time.perf_counter() - start))

    def _run_segment(
        self, segment: _Segment, slots: Slots, arena: Tensor, times: list[tuple[int, float]] | None
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
        """Return a tensor in a dtype that programs read. Bytes are images only where they are the engine's input."""
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
