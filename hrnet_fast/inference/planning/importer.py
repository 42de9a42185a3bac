"""The importer: a trace becomes a graph. Known functions become nodes of their kind, all others stay calls.

Batch normalisations are folded into convolutions, chains of additions into one sum, and ReLUs into the node before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.inference.planning.graph import (
    MAX_TERMS,
    CallNode,
    CatNode,
    ConvNode,
    Graph,
    InputNode,
    Node,
    PoolNode,
    ResampledTerm,
    SumNode,
)
from hrnet_fast.inference.planning.tracer import EngineDtype, OutOfPlace, StateRef, Trace, TracedCall, ValueRef
from hrnet_fast.inference.weights import NormNames, Piece, Source, WeightSpec

_ADDS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
_RELUS = (F.relu, torch.relu, torch.relu_, F.relu_, Tensor.relu, Tensor.relu_)
_CATS = (torch.cat, torch.concat, torch.concatenate)
_DROPOUTS = (F.dropout, F.dropout2d)
_ALIASES = (Tensor.contiguous, Tensor.detach, Tensor.float, Tensor.clone)


def import_trace(trace: Trace) -> Graph:
    """Return the graph of a trace."""
    graph = Graph({0: InputNode(trace.input_shape)}, trace.output, trace.state)
    for call in trace.calls:
        graph.nodes[call.out] = _node(graph, call)
    for fold in (_drop_aliases, _fold_norms, _fold_sums, _fold_relus):
        fold(graph)
        graph.prune()
    return graph


class _Alias(Node):
    """The input itself."""


class _Relu(Node):
    """A ReLU of the input."""


@dataclass
class _Affine(Node):
    """A batch normalisation of the input in evaluation mode, and the call that it is if it cannot be folded."""

    norm: NormNames | None = None
    call: CallNode | None = None

    def rename(self, names: Callable[[int], int]) -> None:
        super().rename(names)
        if self.call is not None:
            self.call.rename(names)


def _node(graph: Graph, call: TracedCall) -> Node:
    plain = _call(call)
    # Nodes make new values, so the copy of an out-of-place call is needed only where it stays a call.
    function = call.function.function if isinstance(call.function, OutOfPlace) else call.function
    if function in _DROPOUTS:
        return _read_dropout(graph, call) or plain
    if len(call.shape) != 4 or not call.floating:
        return plain
    for functions, read in _READERS:
        if function in functions:
            return read(graph, call) or plain
    return plain


def _call(call: TracedCall) -> CallNode:
    return CallNode(call.shape, function=call.function, args=call.args, kwargs=call.kwargs, floating=call.floating)


def _is_map(graph: Graph, value: Any) -> bool:
    """Whether an argument is a floating tensor of four dimensions."""
    if not isinstance(value, ValueRef):
        return False
    node = graph.nodes[value.value]
    return len(node.shape) == 4 and not (isinstance(node, CallNode) and not node.floating)


def _read_conv(graph: Graph, call: TracedCall) -> Node | None:
    x, weight, bias, stride, padding, dilation, groups = _conv2d_arguments(*call.args, **call.kwargs)
    if not (_is_map(graph, x) and isinstance(weight, StateRef) and (bias is None or isinstance(bias, StateRef))):
        return None
    shape = graph.nodes[x.value].shape
    out, into = call.shape[1], shape[1]
    square = [_uniform(v) for v in (stride, padding, dilation)]
    if groups != 1 or any(v is None for v in square) or square[2] != 1:
        return None
    kernel = graph.parameters[weight.name][2]
    if graph.parameters[weight.name] != (out, into, kernel, kernel) or kernel not in (1, 3):
        return None
    if square[1] != kernel // 2 or square[0] not in (1, 2):
        return None
    spec = WeightSpec(
        (out, into, kernel, kernel), (Piece(Source(weight.name, None if bias is None else bias.name), 0, 0),)
    )
    return ConvNode(call.shape, inputs=[x.value], weight=spec, kernel=kernel, stride=square[0])


def _conv2d_arguments(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> tuple[Any, ...]:
    """Return the arguments of ``torch.conv2d``, which has no signature to inspect."""
    return input, weight, bias, stride, padding, dilation, groups


def _uniform(value: Any) -> Any:
    """Return the one number of a setting for two dimensions, or None where they differ."""
    values = {value} if isinstance(value, (int, str)) else set(value)
    return values.pop() if len(values) == 1 and not isinstance(value, str) else None


def _read_norm(graph: Graph, call: TracedCall) -> Node | None:
    a = inspect.signature(F.batch_norm).bind(*call.args, **call.kwargs)
    a.apply_defaults()
    x, mean, var, weight, bias, training, _, eps = a.arguments.values()
    if training or not _is_map(graph, x) or not all(t is None or isinstance(t, StateRef) for t in (weight, bias)):
        return None
    if not (isinstance(mean, StateRef) and isinstance(var, StateRef)):
        return None
    norm = NormNames(mean.name, var.name, weight and weight.name, bias and bias.name, float(eps))
    return _Affine(call.shape, inputs=[x.value], norm=norm, call=_call(call))


def _read_add(graph: Graph, call: TracedCall) -> Node | None:
    if call.kwargs or len(call.args) != 2 or not all(_is_map(graph, a) for a in call.args):
        return None
    if any(graph.nodes[a.value].shape != call.shape for a in call.args):
        return None
    return SumNode(call.shape, terms=[ResampledTerm(a.value) for a in call.args])


def _read_relu(graph: Graph, call: TracedCall) -> Node | None:
    return _Relu(call.shape, inputs=[call.args[0].value]) if call.args and _is_map(graph, call.args[0]) else None


def _read_resample(graph: Graph, call: TracedCall) -> Node | None:
    a = inspect.signature(F.interpolate).bind(*call.args, **call.kwargs)
    a.apply_defaults()
    given = a.arguments
    x, mode = given["input"], given["mode"]
    if not _is_map(graph, x) or mode not in ("nearest", "bilinear") or given["antialias"]:
        return None
    before, align = graph.nodes[x.value].shape[2:], bool(given["align_corners"])
    factor = given["scale_factor"]
    if factor is not None and not given["recompute_scale_factor"]:
        factors = [factor] * 2 if isinstance(factor, (int, float)) else list(factor)
        # Positions follow from the factor here and from the sizes in a sum: they agree only for exact multiples.
        if not align and any(n * f != m for n, f, m in zip(before, factors, call.shape[2:], strict=True)):
            return None
    if before == call.shape[2:]:
        return _Alias(call.shape, inputs=[x.value])
    return SumNode(call.shape, terms=[ResampledTerm(x.value, mode, align)])


def _read_cat(graph: Graph, call: TracedCall) -> Node | None:
    parts: Any = call.args[0] if call.args else call.kwargs.get("tensors")
    dim = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    if dim not in (1, -3) or not set(call.kwargs) <= {"tensors", "dim"} or not all(_is_map(graph, p) for p in parts):
        return None
    return CatNode(call.shape, inputs=[p.value for p in parts])


def _read_pool(graph: Graph, call: TracedCall) -> Node | None:
    if not call.args or not _is_map(graph, call.args[0]) or call.kwargs or len(call.args) not in (2, 3):
        return None
    sizes = [_uniform(a) for a in call.args[1:] if a is not None]  # kernel size and stride
    if len(set(sizes)) != 1 or not sizes[0]:
        return None
    return PoolNode(call.shape, inputs=[call.args[0].value], size=sizes[0])


def _read_alias(graph: Graph, call: TracedCall) -> Node | None:
    """Return an alias for a copy or conversion of a map. Results of calls keep their own layout and dtype."""
    if not call.args or not _is_map(graph, call.args[0]) or isinstance(graph.nodes[call.args[0].value], CallNode):
        return None
    return _Alias(call.shape, inputs=[call.args[0].value])


def _read_conversion(graph: Graph, call: TracedCall) -> Node | None:
    return _read_alias(graph, call) if call.args[1:] == (EngineDtype(),) and not call.kwargs else None


def _read_dropout(graph: Graph, call: TracedCall) -> Node | None:
    training = call.args[2] if len(call.args) > 2 else call.kwargs.get("training", True)
    if training or not isinstance(call.args[0], ValueRef):
        return None
    return _Alias(call.shape, inputs=[call.args[0].value])


_READERS: tuple[tuple[tuple[Any, ...], Callable[[Graph, TracedCall], Node | None]], ...] = (
    ((torch.conv2d,), _read_conv),
    ((F.batch_norm,), _read_norm),
    (_ADDS, _read_add),
    (_RELUS, _read_relu),
    ((F.interpolate,), _read_resample),
    (_CATS, _read_cat),
    ((F.avg_pool2d,), _read_pool),
    (_ALIASES, _read_alias),
    ((Tensor.to,), _read_conversion),
)


def _drop_aliases(graph: Graph) -> None:
    graph.replace({value: node.inputs[0] for value, node in graph.nodes.items() if type(node) is _Alias})


def _fold_norms(graph: Graph) -> None:
    """Fold a normalisation into the convolution before it, if nothing else reads that; else it becomes a call."""
    uses, news = graph.uses(), dict[int, int]()
    for value, node in list(graph.nodes.items()):
        if not isinstance(node, _Affine):
            continue
        assert node.norm is not None
        assert node.call is not None
        before = news.get(node.inputs[0], node.inputs[0])
        conv = graph.nodes[before]
        if isinstance(conv, ConvNode) and uses[node.inputs[0]] == 1:
            assert conv.weight is not None
            (piece,) = conv.weight.pieces
            conv.weight = WeightSpec(conv.weight.shape, (Piece(piece.source.normalised(node.norm), 0, 0),))
            news[value] = before
        else:
            graph.nodes[value] = node.call
    graph.replace(news)


def _fold_sums(graph: Graph) -> None:
    """Inline terms that are sums themselves and are read by nothing else, in their order."""
    uses = graph.uses()
    for node in graph.nodes.values():
        if not isinstance(node, SumNode):
            continue
        terms: list[ResampledTerm] = []
        for k, term in enumerate(node.terms):
            inner, left = graph.nodes[term.value], len(node.terms) - k - 1
            single = term.mode == "identity" and isinstance(inner, SumNode) and uses[term.value] == 1
            if single and len(terms) + len(inner.terms) + left <= MAX_TERMS:  # type: ignore[attr-defined]
                terms += inner.terms  # type: ignore[attr-defined]
            else:
                terms.append(term)
        node.terms = terms


def _fold_relus(graph: Graph) -> None:
    """Fold a ReLU into the convolution or sum before it, if nothing else reads that; else it becomes a sum of one."""
    uses, news = graph.uses(), dict[int, int]()
    for value, node in list(graph.nodes.items()):
        if type(node) is not _Relu:
            continue
        before = graph.nodes[node.inputs[0]]
        if isinstance(before, (ConvNode, SumNode)) and uses[node.inputs[0]] == 1 and not before.activated:
            before.relu = (0, before.shape[1])
            news[value] = node.inputs[0]
        else:
            graph.nodes[value] = SumNode(node.shape, (0, node.shape[1]), terms=[ResampledTerm(node.inputs[0])])
    graph.replace(news)
