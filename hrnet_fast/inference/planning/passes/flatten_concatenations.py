"""Pass: a concatenation of concatenations becomes one."""

from __future__ import annotations

from hrnet_fast.inference.planning.graph import CatNode, Graph


def flatten_concatenations(graph: Graph) -> None:
    """Inline concatenations that are read by concatenations.

    Post: no input of a :class:`CatNode` is a :class:`CatNode`.
    """
    for node in graph.nodes.values():
        if isinstance(node, CatNode):
            parts: list[int] = []
            for value in node.inputs:
                inner = graph.nodes[value]
                parts += inner.inputs if isinstance(inner, CatNode) else [value]
            node.inputs = parts
