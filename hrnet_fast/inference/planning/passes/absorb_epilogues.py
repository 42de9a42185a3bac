"""Pass: a convolution takes the residual and the ReLU of the sum that reads it into its epilogue."""

from __future__ import annotations

from hrnet_fast.inference.planning.graph import Graph, ResampledTerm, SumNode
from hrnet_fast.inference.planning.passes.merge_summed_convs import added_conv


def absorb_epilogues(graph: Graph) -> None:
    """Let one convolution of each sum add another term of its own size; where no term is left, it replaces the sum.

    Pre: no convolution has a residual.
    Post: a convolution's residual does not depend on the convolution.
    """
    uses = graph.uses()
    news: dict[int, int] = {}
    position = {value: k for k, value in enumerate(graph.nodes)}
    for value, node in list(graph.nodes.items()):
        if not isinstance(node, SumNode):
            continue
        found = [(t, conv) for t in node.terms if (conv := added_conv(graph, t, uses)) is not None]
        if not found:
            continue
        # The last one in order: most other terms are computed before it.
        term, conv = max(found, key=lambda pair: position[pair[0].value])
        residual = next((t for t in node.terms if _can_be_residual(graph, t, term, position)), None)
        if residual is not None:
            conv.residual = residual.value
            node.terms = [t for t in node.terms if t is not residual]
        if len(node.terms) == 1 and node.terms[0] is term:
            conv.relu = node.relu
            news[value] = term.value
    graph.replace(news)


def _can_be_residual(graph: Graph, other: ResampledTerm, term: ResampledTerm, position: dict[int, int]) -> bool:
    """Whether the convolution of `term` can add `other`: a map of its size that does not depend on it."""
    if other.mode != "identity" or other.value == term.value:
        return False
    return position[other.value] < position[term.value] or not _depends(graph, other.value, term.value)


def _depends(graph: Graph, value: int, on: int) -> bool:
    seen, stack = set[int](), [value]
    while stack:
        v = stack.pop()
        if v == on:
            return True
        if v not in seen:
            seen.add(v)
            stack += graph.nodes[v].reads()
    return False
