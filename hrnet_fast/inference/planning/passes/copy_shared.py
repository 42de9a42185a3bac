"""Pass: inputs of concatenations that cannot lie in the concatenation's buffer are copied there."""

from __future__ import annotations

from hrnet_fast.inference.planning.graph import (
    CatNode,
    ConvNode,
    Graph,
    InputNode,
    Node,
    ResampledTerm,
    SliceNode,
    SumNode,
)


def copy_shared(graph: Graph) -> None:
    """Insert copies, which are sums of one term, where a value would have to lie in two buffers.

    Post: every input of a concatenation or a merged convolution has its place in that one's buffer alone. An input that
    is a slice is the first of a merged convolution.
    """
    placed: set[int] = set()
    for node in list(graph.nodes.values()):
        if not isinstance(node, CatNode) and not (isinstance(node, ConvNode) and len(node.inputs) > 1):
            continue
        for k, value in enumerate(node.inputs):
            before = graph.nodes[value]
            if value in placed or not _fits(before, node, k):
                node.inputs[k] = graph.add(SumNode(before.shape, terms=[ResampledTerm(value)]))
            placed.add(node.inputs[k])


def _fits(value: Node, reader: Node, position: int) -> bool:
    """Whether a value can be written directly to this position of its reader's buffer."""
    if isinstance(value, SliceNode):
        return position == 0 and not isinstance(reader, CatNode)
    return not isinstance(value, (InputNode, CatNode))
