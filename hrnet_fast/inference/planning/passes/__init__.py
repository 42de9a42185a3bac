"""Graph passes: rewrites into fewer, larger nodes that compute the same sums.

Each pass changes a graph in place and keeps its outputs, exactly in real arithmetic. :func:`run_passes` prunes and
sorts after each one, so every pass may assume a graph in topological order without dead nodes. After all of them a
fusion of four branches is 11 steps (paper, section 3.2 and Figure 3).
"""

from __future__ import annotations

from collections.abc import Callable

from hrnet_fast.inference.planning.graph import Graph
from hrnet_fast.inference.planning.passes.absorb_epilogues import absorb_epilogues
from hrnet_fast.inference.planning.passes.copy_shared import copy_shared
from hrnet_fast.inference.planning.passes.flatten_concatenations import flatten_concatenations
from hrnet_fast.inference.planning.passes.merge_summed_convs import merge_summed_convs
from hrnet_fast.inference.planning.passes.split_v2_head import split_v2_head
from hrnet_fast.inference.planning.passes.stack_convs import stack_convs

# In order: each one relies on the postconditions of those before it.
PASSES: tuple[Callable[[Graph], None], ...] = (
    flatten_concatenations,
    split_v2_head,
    merge_summed_convs,
    stack_convs,
    absorb_epilogues,
    copy_shared,
)


def run_passes(graph: Graph) -> Graph:
    """Run all passes on `graph`, in place, and return it."""
    for rewrite in PASSES:
        rewrite(graph)
        graph.prune()
        graph.sort()
    return graph
