"""The algebra of inference: fewer, larger steps that compute the same sums.

Convolutions that are summed become one over the concatenation of their inputs; convolutions that share an input become
one with stacked outputs; what is added at the same size goes into a convolution's epilogue. After these rewrites a
4-branch fusion is 11 steps (design: paper, section 3.2 and Figure 3). All of it holds exactly in real arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hrnet_fast.inference.planning.graph import (
    MAX_TERMS,
    CatNode,
    ConvNode,
    Graph,
    InputNode,
    Node,
    ResampledTerm,
    SumNode,
)
from hrnet_fast.inference.weights import Piece, WeightSpec


@dataclass
class SliceNode(Node):
    """Channels of another value, from `begin` on; makes nothing."""

    input: int = 0
    begin: int = 0

    def reads(self) -> list[int]:
        return [self.input]


def rewrite(graph: Graph) -> Graph:
    """Regroup `graph`, in place."""
    _flatten_cats(graph)
    _split_v2_head(graph)
    graph.prune()
    claimed = {v for node in graph.nodes.values() if isinstance(node, CatNode) for v in node.inputs}
    _merge_sums(graph, claimed)
    graph.prune()
    _stack(graph)
    _absorb(graph)
    graph.prune()
    graph.sort()
    _copy_shared(graph)
    graph.sort()
    return graph


def _flatten_cats(graph: Graph) -> None:
    for node in graph.nodes.values():
        if isinstance(node, CatNode):
            parts: list[int] = []
            for value in node.inputs:
                inner = graph.nodes[value]
                parts += inner.inputs if isinstance(inner, CatNode) else [value]
            node.inputs = parts


def _split_v2_head(graph: Graph) -> None:
    """A 1x1 convolution over a concatenation of upsampled maps convolves each where it is, and upsamples the results.

    Interpolation weights sum to one, so the order does not matter; the small maps cost a fraction.
    """
    for value, node in list(graph.nodes.items()):
        if not isinstance(node, ConvNode) or node.geometry != (1, 1) or len(node.inputs) != 1:
            continue
        cat = graph.nodes[node.inputs[0]]
        if not isinstance(cat, CatNode) or len(cat.inputs) > MAX_TERMS:
            continue
        members = [(graph.nodes[v], _resampled(graph, v)) for v in cat.inputs]
        if not any(term is not None for _, term in members):
            continue
        assert node.weight is not None
        (piece,) = node.weight.pieces
        terms, offset = [], 0
        for k, (member, term) in enumerate(members):
            source, channels = term or ResampledTerm(cat.inputs[k]), member.shape[1]
            small = graph.nodes[source.value]
            part = replace(piece.source, begin=offset, end=offset + channels, with_bias=k == 0)
            spec = WeightSpec((node.shape[1], channels, 1, 1), (Piece(part, 0, 0),))
            new = graph.new()
            graph.nodes[new] = ConvNode((*node.shape[:2], *small.shape[2:]), inputs=[source.value], weight=spec)
            terms.append(replace(source, value=new))
            offset += channels
        graph.nodes[value] = SumNode(node.shape, node.relu, terms)
    graph.sort()


def _resampled(graph: Graph, value: int) -> ResampledTerm | None:
    """The term of a value that is nothing but a smaller map, upsampled."""
    node = graph.nodes[value]
    if not isinstance(node, SumNode) or len(node.terms) != 1 or node.activated or node.terms[0].mode == "identity":
        return None
    before = graph.nodes[node.terms[0].value].shape
    return node.terms[0] if before[2] * before[3] < node.shape[2] * node.shape[3] else None


def _loose_conv(graph: Graph, term: ResampledTerm, uses: dict[int, int]) -> ConvNode | None:
    """The convolution behind a term that stands for it alone, and may take more into its sum."""
    node = graph.nodes[term.value]
    loose = isinstance(node, ConvNode) and uses[term.value] == 1 and not node.activated and node.residual is None
    return node if loose and term.mode == "identity" else None  # type: ignore[return-value]


def _merge_sums(graph: Graph, claimed: set[int]) -> None:
    """Convolutions of one geometry that are summed become one over the concatenation of their inputs.

    With a stride, inputs of two sizes may give one: those cannot be concatenated.
    """
    uses = graph.uses()
    for node in list(graph.nodes.values()):
        if not isinstance(node, SumNode):
            continue
        by_geometry: dict[tuple[int, ...], list[tuple[int, ConvNode]]] = {}
        for k, term in enumerate(node.terms):
            conv = _loose_conv(graph, term, uses)
            if conv is None or len(conv.inputs) != 1 or isinstance(graph.nodes[conv.inputs[0]], InputNode):
                continue
            size = graph.nodes[conv.inputs[0]].shape[2:]
            by_geometry.setdefault((*conv.geometry, *size), []).append((k, conv))
        for found in by_geometry.values():
            # A map stands in one concatenation at most: in a second one it would have to be copied.
            group = [(k, conv) for k, conv in found if conv.inputs[0] not in claimed]
            inputs = [conv.inputs[0] for _, conv in group]
            if len(group) < 2 or len(set(inputs)) < len(group):
                continue
            claimed.update(inputs)
            first = group[0][0]
            node.terms[first] = ResampledTerm(_merge(graph, [conv for _, conv in group]))
            dropped = {k for k, _ in group[1:]}
            node.terms = [t for k, t in enumerate(node.terms) if k not in dropped]
    graph.sort()


def _merge(graph: Graph, convs: list[ConvNode]) -> int:
    value = graph.new()
    kernel = convs[0].kernel
    made = ConvNode(convs[0].shape, kernel=kernel, stride=convs[0].stride, inputs=[c.inputs[0] for c in convs])
    graph.nodes[value] = made
    _order_inputs(made, [c.weight for c in convs if c.weight is not None])
    return value


def _order_inputs(conv: ConvNode, specs: list[WeightSpec]) -> None:
    """Set a merged convolution's weight from its parts' weights, in the order of its inputs."""
    pieces, offset = [], 0
    for spec in specs:
        pieces += [replace(p, in_offset=offset + p.in_offset) for p in spec.pieces]
        offset += spec.shape[1]
    conv.weight = WeightSpec((specs[0].shape[0], offset, conv.kernel, conv.kernel), tuple(pieces))


def _stack(graph: Graph) -> None:
    """Convolutions of one geometry that share an input become one with stacked outputs; their values are slices."""
    uses = graph.uses()
    concatenated = {v: node for node in graph.nodes.values() if isinstance(node, CatNode) for v in node.inputs}
    joins = {
        v: node
        for node in graph.nodes.values()
        if isinstance(node, ConvNode) and len(node.inputs) > 1
        for v in node.inputs
    }
    sums = {t.value: node for node in graph.nodes.values() if isinstance(node, SumNode) for t in node.terms}
    taken: set[int] = set()  # joins that begin with a slice of a stack
    groups: dict[tuple[int, int, int], list[int]] = {}
    for value, node in graph.nodes.items():
        alone = isinstance(node, ConvNode) and len(node.inputs) == 1 and node.residual is None
        if alone and value not in concatenated and not isinstance(graph.nodes[node.inputs[0]], InputNode):  # type: ignore[attr-defined]
            groups.setdefault((node.inputs[0], *node.geometry), []).append(value)  # type: ignore[attr-defined]
    for members in groups.values():
        free = [v for v in members if not (uses[v] == 1 and _adds_alone(sums.get(v)))]
        # One member may also stand in a concatenation: the stack's last, and the concatenation's first.
        shared = [v for v in free if v in joins]
        kept = next((v for v in shared if id(joins[v]) not in taken), None)
        group = [v for v in free if v not in joins or v == kept]
        if len(group) < 2:
            continue
        if kept is not None:
            taken.add(id(joins[kept]))
            _put_first(joins[kept], kept, graph)
        # ReLU covers one range of the stack: those without first.
        group.sort(key=lambda v: (v == kept, graph.nodes[v].activated))
        if kept is not None and not graph.nodes[kept].activated and any(graph.nodes[v].activated for v in group):
            continue
        _stack_group(graph, group)
    graph.sort()


def _adds_alone(node: SumNode | None) -> bool:
    """Whether a convolution and one map of its own size are all that is added: then the convolution does it."""
    return node is not None and len(node.terms) == 2 and all(t.mode == "identity" for t in node.terms)


def _put_first(conv: ConvNode, value: int, graph: Graph) -> None:
    assert conv.weight is not None
    widths = [graph.nodes[v].shape[1] for v in conv.inputs]
    order = sorted(range(len(conv.inputs)), key=lambda k: conv.inputs[k] != value)
    starts = [sum(widths[:k]) for k in range(len(widths))]
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
    convs = [graph.nodes[v] for v in group]
    pieces, offset, begin = [], 0, 0
    stacked = graph.new()
    for value, conv in zip(group, convs, strict=True):
        assert isinstance(conv, ConvNode)
        assert conv.weight is not None
        pieces += [replace(p, out_offset=offset + p.out_offset) for p in conv.weight.pieces]
        graph.nodes[value] = SliceNode(conv.shape, input=stacked, begin=offset)
        offset += conv.shape[1]
        begin += 0 if conv.activated else conv.shape[1]
    first = convs[0]
    assert isinstance(first, ConvNode)
    assert first.weight is not None
    shape = (first.shape[0], offset, *first.shape[2:])
    spec = WeightSpec((offset, *first.weight.shape[1:]), tuple(pieces))
    relu = (begin, offset) if begin < offset else (0, 0)
    graph.nodes[stacked] = ConvNode(shape, relu, list(first.inputs), spec, first.kernel, first.stride)


def _absorb(graph: Graph) -> None:
    """A convolution adds what is added to it at its own size; where that is all, the sum's ReLU is its too."""
    uses = graph.uses()
    news: dict[int, int] = {}
    position = {value: k for k, value in enumerate(graph.nodes)}
    for value, node in list(graph.nodes.items()):
        if not isinstance(node, SumNode):
            continue
        found = [(t, c) for t in node.terms if (c := _loose_conv(graph, t, uses)) is not None]
        if not found:
            continue
        # The one that runs last: its residual is there by then.
        term, conv = max(found, key=lambda pair: position[pair[0].value])
        others = [t for t in node.terms if t is not term and t.mode == "identity"]
        others = [t for t in others if position[t.value] < position[term.value] or _independent(graph, t.value, term)]
        if others and all(t.value != term.value for t in others):
            conv.residual = others[0].value
            node.terms = [t for t in node.terms if t is not others[0]]
        if len(node.terms) == 1 and node.terms[0] is term:
            conv.relu = node.relu
            news[value] = term.value
    graph.replace(news)
    for node in graph.nodes.values():
        if isinstance(node, SliceNode):
            node.input = news.get(node.input, node.input)


def _independent(graph: Graph, value: int, term: ResampledTerm) -> bool:
    """Whether `value` does not depend on the term's: then the convolution may wait for it."""
    seen, stack = set[int](), [value]
    while stack:
        v = stack.pop()
        if v == term.value:
            return False
        if v not in seen:
            seen.add(v)
            stack += graph.nodes[v].reads()
    return True


def _copy_shared(graph: Graph) -> None:
    """A map that cannot stand where a concatenation wants it is copied there."""
    placed: set[int] = set()
    for node in list(graph.nodes.values()):
        if not isinstance(node, CatNode) and not (isinstance(node, ConvNode) and len(node.inputs) > 1):
            continue
        for k, value in enumerate(node.inputs):
            before = graph.nodes[value]
            fits = not isinstance(before, (InputNode, CatNode)) and (not isinstance(before, SliceNode) or k == 0)
            if value not in placed and fits and not (isinstance(before, SliceNode) and isinstance(node, CatNode)):
                placed.add(value)
                continue
            new = graph.new()
            graph.nodes[new] = SumNode(before.shape, terms=[ResampledTerm(value)])
            node.inputs[k] = new
            placed.add(new)
