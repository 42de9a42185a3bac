"""Pass: convolutions that are added become one convolution over the concatenation of their inputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hrnet_fast.inference.planning.graph import CatNode, ConvNode, Graph, InputNode, ResampledTerm, SumNode
from hrnet_fast.inference.weights import WeightSpec


def merge_summed_convs(graph: Graph) -> None:
    """Merge the terms of each sum that are convolutions of one geometry and input size.

    Pre: a convolution has one input.
    Post: a convolution may have several inputs. A value is an input of at most one concatenation or merged convolution,
    as it can lie in one buffer only; the network's input is an input of none.
    """
    uses = graph.uses()
    claimed = {v for node in graph.nodes.values() if isinstance(node, CatNode) for v in node.inputs}
    for node in list(graph.nodes.values()):
        if not isinstance(node, SumNode):
            continue
        terms: list[ResampledTerm | None] = list(node.terms)
        for group in _by_geometry(graph, node, uses).values():
            free = [(k, conv) for k, conv in group if conv.inputs[0] not in claimed]
            inputs = [conv.inputs[0] for _, conv in free]
            if len(free) < 2 or len(set(inputs)) < len(free):
                continue
            claimed.update(inputs)
            for k, _ in free:
                terms[k] = None
            terms[free[0][0]] = ResampledTerm(graph.add(_merged([conv for _, conv in free])))
        node.terms = [term for term in terms if term is not None]


def added_conv(graph: Graph, term: ResampledTerm, uses: Counter[int]) -> ConvNode | None:
    """Return the convolution of a term, if only this term reads it and it has neither ReLU nor residual."""
    node = graph.nodes[term.value]
    if term.mode != "identity" or not isinstance(node, ConvNode):
        return None
    return node if uses[term.value] == 1 and not node.activated and node.residual is None else None


def _by_geometry(graph: Graph, node: SumNode, uses: Counter[int]) -> dict[tuple[int, ...], list[tuple[int, ConvNode]]]:
    """Return positions and convolutions of a sum's terms by kernel, stride and input size.

    Inputs of two sizes may have one output size under a stride, and cannot be concatenated.
    """
    found: dict[tuple[int, ...], list[tuple[int, ConvNode]]] = {}
    for k, term in enumerate(node.terms):
        conv = added_conv(graph, term, uses)
        if conv is not None and len(conv.inputs) == 1 and not isinstance(graph.nodes[conv.inputs[0]], InputNode):
            found.setdefault((*conv.geometry, *graph.nodes[conv.inputs[0]].shape[2:]), []).append((k, conv))
    return found


def _merged(convs: list[ConvNode]) -> ConvNode:
    """Return the convolution over all inputs, in the order of `convs`."""
    pieces, offset = [], 0
    for conv in convs:
        assert conv.weight is not None
        pieces += [replace(p, in_offset=offset + p.in_offset) for p in conv.weight.pieces]
        offset += conv.weight.shape[1]
    first = convs[0]
    spec = WeightSpec((first.shape[1], offset, first.kernel, first.kernel), tuple(pieces))
    inputs = [conv.inputs[0] for conv in convs]
    return ConvNode(first.shape, inputs=inputs, weight=spec, kernel=first.kernel, stride=first.stride)
