"""From a graph to a plan: which value lies where, what runs when, and which buffers share memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hrnet_fast.errors import HRNetFastError
from hrnet_fast.inference.plan import (
    Buffer,
    CallStep,
    ConvStep,
    ExportStep,
    ImportStep,
    Plan,
    PoolStep,
    Slot,
    Step,
    SumStep,
    SumTerm,
    View,
    groupable,
    reads,
    slot_reads,
    writes,
)
from hrnet_fast.inference.planning import graph as g
from hrnet_fast.inference.planning.importer import build
from hrnet_fast.inference.planning.passes import SliceNode, rewrite
from hrnet_fast.inference.planning.tracer import Ref, record
from hrnet_fast.inference.weights import WeightSpec


def make_plan(model: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> Plan:
    """Return the plan of `model` in evaluation mode for inputs of `input_shape`.

    Raises:
        InputError: a model that cannot be recorded (:func:`~hrnet_fast.inference.planning.tracer.record`).
        HRNetFastError: one that was recorded, and that planning does not master.
    """
    parameter = next(model.parameters(), None)
    given = torch.float32 if parameter is None else parameter.dtype
    recording = record(model, tuple(input_shape), given)
    try:
        return lower(rewrite(build(recording)), dtype)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise HRNetFastError(
            f"optimize_for_inference: {type(model).__name__} cannot be planned ({type(error).__name__}: {error}). "
            "Please report this model."
        ) from error


def lower(graph: g.Graph, dtype: torch.dtype) -> Plan:
    """Return a graph's plan."""
    places = _Places(graph)
    steps, output, slots = _Lowering(graph, places).run()
    waves = _schedule(steps)
    steps, buffers = _buffers(steps, waves, places)
    order = [i for wave in waves for i in wave]
    number = {i: k for k, i in enumerate(order)}
    return Plan(
        input_shape=graph.nodes[0].shape,
        dtype=dtype,
        buffers=buffers,
        weights=places.weights(graph),
        steps=tuple(steps[i] for i in order),
        waves=tuple(tuple(number[i] for i in wave) for wave in waves),
        output=output,
        slots=slots,
    )


class _Places:
    """Where every map lies: a buffer of its own, or channels of one that it shares with its neighbours."""

    def __init__(self, graph: g.Graph) -> None:
        self.views: dict[int, View] = {}
        self.sizes: list[tuple[int, int, int, int]] = []  # n, channels, height, width
        self.joined: dict[int, View] = {}  # what a node over several inputs reads
        self._weights: dict[WeightSpec, int] = {}
        for value, node in graph.nodes.items():
            if isinstance(node, g.CatNode) or (isinstance(node, g.ConvNode) and len(node.inputs) > 1):
                self._join(graph, value, node)
        for value, node in graph.nodes.items():
            if isinstance(node, SliceNode) or value in self.views or len(node.shape) != 4:
                continue
            self.views[value] = View(self._buffer(node.shape, node.shape[1]), 0, node.shape[1])
        for value, node in graph.nodes.items():
            if isinstance(node, SliceNode) and value not in self.views:
                whole = self.views[node.input]
                self.views[value] = View(whole.buffer, whole.offset + node.begin, node.shape[1])

    def _buffer(self, shape: tuple[int, ...], channels: int) -> int:
        self.sizes.append((shape[0], channels, shape[2], shape[3]))
        return len(self.sizes) - 1

    def _join(self, graph: g.Graph, value: int, node: Any) -> None:
        first = graph.nodes[node.inputs[0]]
        for v in node.inputs:
            other = graph.nodes[v].shape
            assert (other[0], *other[2:]) == (first.shape[0], *first.shape[2:]), "parts of two sizes"
        parts, offset = list(node.inputs), 0
        if isinstance(first, SliceNode):  # the last of a stack: the whole stack lies before the others
            parts, offset = [first.input, *parts[1:]], first.begin
        widths = [graph.nodes[v].shape[1] for v in parts]
        buffer = self._buffer(first.shape, sum(widths))
        at = 0
        for part, width in zip(parts, widths, strict=True):
            self.views[part] = View(buffer, at, width)
            at += width
        self.joined[value] = View(buffer, offset, at - offset)
        if isinstance(node, g.CatNode):
            self.views[value] = self.joined[value]

    def weight(self, spec: WeightSpec) -> int:
        return self._weights.setdefault(spec, len(self._weights))

    def weights(self, graph: g.Graph) -> tuple[WeightSpec, ...]:
        return tuple(self._weights)


class _Lowering:
    """Writes steps for nodes; tensors that are no maps get slots, and maps cross over where calls read or make them."""

    def __init__(self, graph: g.Graph, places: _Places) -> None:
        self.graph, self.places = graph, places
        self.steps: list[Step] = []
        self.slots: dict[int, int] = {0: 0}
        self.imported: set[int] = set()

    def run(self) -> tuple[list[Step], Any, int]:
        for value, node in self.graph.nodes.items():
            step = self.step(value, node)
            if step is not None:
                self.steps.append(step)
        output = self._swap(self.graph.output)
        return self.steps, output, len(self.slots)

    def step(self, value: int, node: g.Node) -> Step | None:
        if isinstance(node, g.ConvNode):
            assert node.weight is not None
            source = self.places.joined.get(value) or self.map(node.inputs[0])
            for v in node.inputs:
                self.map(v)
            residual = None if node.residual is None else self.map(node.residual)
            weight = self.places.weight(node.weight)
            return ConvStep(weight, source, self.places.views[value], residual, node.kernel, node.stride, node.relu)
        if isinstance(node, g.SumNode):
            terms = tuple(SumTerm(self.map(t.value), t.mode, t.align_corners) for t in node.terms)
            return SumStep(terms, self.places.views[value], node.activated)
        if isinstance(node, g.PoolNode):
            return PoolStep(self.map(node.input), self.places.views[value], node.size)
        if isinstance(node, g.CatNode):
            for v in node.inputs:
                self.map(v)
        if isinstance(node, g.CallNode):
            assert node.function is not None
            args, kwargs = self._swap(node.args), self._swap(node.kwargs)
            return CallStep(node.function, args, kwargs, self.slot_for(value), node.shape)
        return None

    def slot_for(self, value: int) -> int:
        return self.slots.setdefault(value, len(self.slots))

    def map(self, value: int) -> View:
        """The value's place as a map; what is a tensor so far is imported."""
        view = self.places.views[value]
        if isinstance(self.graph.nodes[value], (g.InputNode, g.CallNode)) and value not in self.imported:
            self.imported.add(value)
            self.steps.append(ImportStep(self.slot_for(value), view))
        return view

    def tensor(self, value: int) -> Slot:
        """The value's slot; what is a map so far is exported."""
        if value not in self.slots:
            node = self.graph.nodes[value]
            slot = self.slot_for(value)
            if not isinstance(node, (g.InputNode, g.CallNode)):
                self.steps.append(ExportStep(self.places.views[value], slot))
        return Slot(self.slots[value])

    def _swap(self, tree: Any) -> Any:
        return tree_map(lambda leaf: self.tensor(leaf.value) if isinstance(leaf, Ref) else leaf, tree)


def _schedule(steps: list[Step]) -> list[list[int]]:
    """Waves of steps that can run side by side.

    The branches' k-th convolutions are to meet in one wave: so convolutions of that kind wait until nothing else can
    run, and calls, which leave the executor, wait for both.
    """
    pending = _dependencies(steps)
    waves: list[list[int]] = []
    ranks: tuple[Callable[[Step], bool], ...] = (
        lambda s: not groupable(s) and not isinstance(s, CallStep),
        groupable,
        lambda s: isinstance(s, CallStep),
    )
    while pending:
        ready = [i for i, needs in pending.items() if not needs]
        wave = next(found for rank in ranks if (found := [i for i in ready if rank(steps[i])]))
        waves.append(wave)
        for i in wave:
            del pending[i]
        for needs in pending.values():
            needs.difference_update(wave)
    return waves


def _dependencies(steps: list[Step]) -> dict[int, set[int]]:
    """Which steps each one has to wait for. Buffers are not shared yet, so only writers count."""
    writers: dict[int, list[tuple[View, int]]] = {}
    slots: dict[int, int] = {}
    for i, step in enumerate(steps):
        view = writes(step)
        if view is not None:
            writers.setdefault(view.buffer, []).append((view, i))
        if isinstance(step, (ExportStep, CallStep)):
            slots[step.slot] = i
    needs: dict[int, set[int]] = {}
    for i, step in enumerate(steps):
        needs[i] = {slots[s] for s in slot_reads(step) if s in slots}
        for view in reads(step):
            needs[i] |= {
                j
                for other, j in writers[view.buffer]
                if other.offset < view.offset + view.channels and view.offset < other.offset + other.channels
            }
    return needs


@dataclass
class _Life:
    first: int
    last: int
    readers: list[int]  # steps of the last wave
    whole: bool  # one value fills the buffer


def _buffers(steps: list[Step], waves: list[list[int]], places: _Places) -> tuple[list[Step], tuple[Buffer, ...]]:
    """Find buffers' lifetimes, and let a step that adds a map for its last time write over it."""
    lives: dict[int, _Life] = {}
    for k, wave in enumerate(waves):
        for i in wave:
            for view in [*reads(steps[i]), writes(steps[i])]:
                if view is None:
                    continue
                life = lives.setdefault(view.buffer, _Life(k, k, [], True))
                life.whole = life.whole and view.channels == places.sizes[view.buffer][1]
                life.readers = [*(life.readers if life.last == k else []), i]
                life.last = k
    same: dict[int, int] = {}
    for k, wave in enumerate(waves):
        for i in wave:
            over, out = _overwritable(steps[i]), writes(steps[i])
            if over is None or out is None:
                continue
            old = same.get(over.buffer, over.buffer)
            life, mine = lives[old], lives[out.buffer]
            if life.last == k and life.readers == [i] and life.whole and mine.whole and out.buffer not in same:
                same[out.buffer] = old
                life.last, life.readers = mine.last, mine.readers
    kept = [b for b in lives if b not in same]
    number = {b: n for n, b in enumerate(kept)}

    def moved(view: View) -> View:
        return replace(view, buffer=number[same.get(view.buffer, view.buffer)])

    buffers = tuple(Buffer(*places.sizes[b], lives[b].first, lives[b].last) for b in kept)
    return [_moved(step, moved) for step in steps], buffers


def _overwritable(step: Step) -> View | None:
    """The map that a step adds at every element it writes, and reads for nothing else."""
    if isinstance(step, ConvStep) and step.residual is not None and step.residual.buffer != step.source.buffer:
        return step.residual
    if isinstance(step, SumStep):
        same = [t.source for t in step.terms if t.mode == "identity"]
        return same[0] if same and sum(t.source.buffer == same[0].buffer for t in step.terms) == 1 else None
    return None


def _moved(step: Step, moved: Callable[[View], View]) -> Step:
    if isinstance(step, ConvStep):
        residual = None if step.residual is None else moved(step.residual)
        return replace(step, source=moved(step.source), out=moved(step.out), residual=residual)
    if isinstance(step, SumStep):
        terms = tuple(replace(t, source=moved(t.source)) for t in step.terms)
        return replace(step, terms=terms, out=moved(step.out))
    if isinstance(step, PoolStep):
        return replace(step, source=moved(step.source), out=moved(step.out))
    if isinstance(step, ImportStep):
        return replace(step, out=moved(step.out))
    if isinstance(step, ExportStep):
        return replace(step, source=moved(step.source))
    return step
