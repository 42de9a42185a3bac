"""Pass: convolutions that share an input become one convolution with stacked output channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hrnet_fast.inference.planning.graph import CatNode, ConvNode, Graph, InputNode, SliceNode, SumNode
from hrnet_fast.inference.weights import WeightSpec


def stack_convs(graph: Graph) -> None:
    """Stack convolutions of one input and geometry; their values become slices of the stack's.

    Pre: only merged convolutions have several inputs. No convolution has a residual.
    Post: the ReLU of a stack covers one range of channels, up to the last. A slice that a merged convolution reads is
    the last of its stack and the first input of that convolution, so that both can lie in one buffer.
    """
    readers = _Readers.of(graph)
    started: set[int] = set()  # merged convolutions whose first input is a slice
    for members in _by_input(graph, readers).values():
        group, shared = _choose_members(graph, readers, members, started)
        if len(group) < 2:
            continue
        if shared is not None:
            merged = readers.merged[shared]
            started.add(id(merged))
            _move_first(graph, merged, shared)
        # Channels without ReLU come first, and the shared member last.
        group.sort(key=lambda v: (v == shared, graph.nodes[v].activated))
        if shared is None or graph.nodes[shared].activated or not any(graph.nodes[v].activated for v in group):
            _stack_group(graph, group)


@dataclass(frozen=True)
class _Readers:
    """Who reads a value: concatenations, merged convolutions, sums; and how many reads there are."""

    concatenated: frozenset[int]
    merged: dict[int, ConvNode]
    sums: dict[int, SumNode]
    uses: dict[int, int]

    @classmethod
    def of(cls, graph: Graph) -> _Readers:
        nodes = list(graph.nodes.values())
        return cls(
            frozenset(v for node in nodes if isinstance(node, CatNode) for v in node.inputs),
            {v: node for node in nodes if isinstance(node, ConvNode) and len(node.inputs) > 1 for v in node.inputs},
            {t.value: node for node in nodes if isinstance(node, SumNode) for t in node.terms},
            graph.uses(),
        )

    def added_to_one_map(self, value: int) -> bool:
        """Whether a value's only reader is a sum with one other map of its size: a convolution's epilogue adds that."""
        node = self.sums.get(value) if self.uses[value] == 1 else None
        return node is not None and len(node.terms) == 2 and all(t.mode == "identity" for t in node.terms)


def _by_input(graph: Graph, readers: _Readers) -> dict[tuple[int, int, int], list[int]]:
    """Return the convolutions that can be stacked, by input, kernel and stride."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for value, node in graph.nodes.items():
        if not isinstance(node, ConvNode) or len(node.inputs) != 1 or value in readers.concatenated:
            continue
        if not isinstance(graph.nodes[node.inputs[0]], InputNode):
            groups.setdefault((node.inputs[0], *node.geometry), []).append(value)
    return groups


def _choose_members(
    graph: Graph, readers: _Readers, members: list[int], started: set[int]
) -> tuple[list[int], int | None]:
    """Return the members to stack, and the one of them that a merged convolution reads, if any.

    A stack has room for one such member: it must be the last of the stack and the first of the concatenation.
    """
    free = [v for v in members if not readers.added_to_one_map(v)]
    shared = next((v for v in free if v in readers.merged and id(readers.merged[v]) not in started), None)
    return [v for v in free if v not in readers.merged or v == shared], shared


def _move_first(graph: Graph, conv: ConvNode, value: int) -> None:
    """Reorder the inputs of a merged convolution, and its weight with them, so that `value` is the first."""
    assert conv.weight is not None
    widths = [graph.nodes[v].shape[1] for v in conv.inputs]
    starts = [sum(widths[:k]) for k in range(len(widths))]
    order = sorted(range(len(conv.inputs)), key=lambda k: conv.inputs[k] != value)
    moved, offset = {}, 0
    for k in order:
        moved[k], offset = offset, offset + widths[k]
    pieces = []
    for piece in conv.weight.pieces:
        k = max(j for j, start in enumerate(starts) if start <= piece.in_offset)
        pieces.append(replace(piece, in_offset=piece.in_offset - starts[k] + moved[k]))
    conv.inputs = [conv.inputs[k] for k in order]
    conv.weight = replace(conv.weight, pieces=tuple(pieces))


def _stack_group(graph: Graph, group: list[int]) -> None:
    """Add the stack of a group, and replace the group's nodes by slices of it."""
    pieces, slices, offset, begin = [], {}, 0, 0
    for value in group:
        conv = graph.nodes[value]
        assert isinstance(conv, ConvNode)
        assert conv.weight is not None
        pieces += [replace(p, out_offset=offset + p.out_offset) for p in conv.weight.pieces]
        slices[value] = SliceNode(conv.shape, begin=offset)
        offset += conv.shape[1]
        begin += 0 if conv.activated else conv.shape[1]
    first = graph.nodes[group[0]]
    assert isinstance(first, ConvNode)
    assert first.weight is not None
    spec = WeightSpec((offset, *first.weight.shape[1:]), tuple(pieces))
    relu = (begin, offset) if begin < offset else (0, 0)
    shape = (first.shape[0], offset, *first.shape[2:])
    stack = graph.add(ConvNode(shape, relu, list(first.inputs), spec, first.kernel, first.stride))
    for value, node in slices.items():
        node.inputs = [stack]
        graph.nodes[value] = node
