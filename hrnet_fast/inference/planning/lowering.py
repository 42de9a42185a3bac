"""Lowering: a graph becomes a plan, with a place for every value and a step for every node."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from hrnet_fast.errors import HRNetFastError
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning import graph as g
from hrnet_fast.inference.planning.buffer_sharing import Size, share_buffers
from hrnet_fast.inference.planning.importer import import_trace
from hrnet_fast.inference.planning.passes import run_passes
from hrnet_fast.inference.planning.tracer import InputShape, ValueRef, has_several, trace
from hrnet_fast.inference.planning.waves import schedule_waves
from hrnet_fast.inference.steps import (
    CallStep,
    ConvStep,
    ExportStep,
    ImportStep,
    PoolStep,
    Slot,
    Step,
    SumStep,
    SumTerm,
    View,
)
from hrnet_fast.inference.weights import WeightSpec


def make_plan(model: nn.Module, input_shape: InputShape, dtype: torch.dtype) -> Plan:
    """Return the plan of `model` in evaluation mode for inputs of `input_shape`, with maps of `dtype`.

    Raises:
        InputError: the model cannot be traced (:func:`~hrnet_fast.inference.planning.tracer.trace`).
        HRNetFastError: the trace cannot be planned.
    """
    parameter = next(model.parameters(), None)
    given = torch.float32 if parameter is None else parameter.dtype
    traced = trace(model, input_shape, given)
    try:
        return lower(run_passes(import_trace(traced)), dtype)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise HRNetFastError(
            f"optimize_for_inference: {type(model).__name__} cannot be planned ({type(error).__name__}: {error}). "
            "Please report this model."
        ) from error


def lower(graph: g.Graph, dtype: torch.dtype) -> Plan:
    """Return the plan of a graph that all passes have run on."""
    places = _Places(graph)
    steps, output, slots = _StepWriter(graph, places).run()
    waves = schedule_waves(steps)
    steps, buffers = share_buffers(steps, waves, places.sizes)
    order = [i for wave in waves for i in wave]
    number = {i: k for k, i in enumerate(order)}
    return Plan(
        input_shape=graph.nodes[0].shape,
        dtype=dtype,
        buffers=buffers,
        weights=tuple(places.weights),
        steps=tuple(steps[i] for i in order),
        waves=tuple(tuple(number[i] for i in wave) for wave in waves),
        output=output,
        slots=slots,
    )


class _Places:
    """The view of every map: a buffer of its own, or channels of one that it shares with the others of a concatenation.

    Attributes:
        views: by value.
        joined: what a node over several inputs reads, by the node's value.
        sizes: of the buffers.
        weights: numbers by recipe.
    """

    def __init__(self, graph: g.Graph) -> None:
        self.views: dict[int, View] = {}
        self.sizes: list[Size] = []
        self.joined: dict[int, View] = {}
        self.weights: dict[WeightSpec, int] = {}
        for value, node in graph.nodes.items():
            if isinstance(node, g.CatNode) or (isinstance(node, g.ConvNode) and len(node.inputs) > 1):
                self._join(graph, value, node)
        for value, node in graph.nodes.items():
            if isinstance(node, g.SliceNode) or value in self.views or len(node.shape) != 4 or has_several(node.shape):
                continue
            self.views[value] = View(self._buffer(node.shape, node.shape[1]), 0, node.shape[1])
        for value, node in graph.nodes.items():
            if isinstance(node, g.SliceNode) and value not in self.views:
                whole = self.views[node.inputs[0]]
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
        if isinstance(first, g.SliceNode):  # the last of a stack: the whole stack lies before the others
            parts, offset = [first.inputs[0], *parts[1:]], first.begin
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
        return self.weights.setdefault(spec, len(self.weights))


class _StepWriter:
    """Writes steps for nodes. Tensors outside buffers get slots; imports and exports connect both."""

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
            return PoolStep(self.map(node.inputs[0]), self.places.views[value], node.size)
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
        """Return the value's view. A tensor in a slot is imported, once."""
        view = self.places.views[value]
        if isinstance(self.graph.nodes[value], (g.InputNode, g.CallNode)) and value not in self.imported:
            self.imported.add(value)
            self.steps.append(ImportStep(self.slot_for(value), view))
        return view

    def tensor(self, value: int) -> Slot:
        """Return the value's slot. A map is exported, once."""
        if value not in self.slots:
            node = self.graph.nodes[value]
            slot = self.slot_for(value)
            if not isinstance(node, (g.InputNode, g.CallNode)):
                self.steps.append(ExportStep(self.places.views[value], slot))
        return Slot(self.slots[value])

    def _swap(self, tree: Any) -> Any:
        return tree_map(lambda leaf: self.tensor(leaf.value) if isinstance(leaf, ValueRef) else leaf, tree)
