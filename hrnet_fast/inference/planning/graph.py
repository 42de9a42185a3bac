"""The graph IR: convolutions, sums of resampled terms, concatenations, poolings, and calls of anything else.

``importer`` makes it from a trace, ``passes`` rewrite it, and ``lowering`` turns it into a plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.inference.planning.tracer import StateRef, ValueRef
from hrnet_fast.inference.weights import WeightSpec

MAX_TERMS = 8  # of one sum, as fuse_sum takes them


@dataclass(frozen=True)
class ResampledTerm:
    """One summand: a value, and how it is resampled to the sum's size."""

    value: int
    mode: str = "identity"  # "nearest", "bilinear"
    align_corners: bool = False


@dataclass
class Node:
    """Makes one value of `shape` from the values `inputs`. `relu` is the range of channels that pass a ReLU, if any."""

    shape: tuple[int, ...]
    relu: tuple[int, int] = (0, 0)
    inputs: list[int] = field(default_factory=list)

    def reads(self) -> list[int]:
        return self.inputs

    def rename(self, names: Callable[[int], int]) -> None:
        """Replace the values that this node reads."""
        self.inputs = [names(v) for v in self.inputs]

    @property
    def activated(self) -> bool:
        return self.relu[1] > self.relu[0]


class InputNode(Node):
    """The network's input."""


@dataclass
class ConvNode(Node):
    """A 1x1 or 3x3 convolution (padding 0 or 1) over the concatenation of `inputs`, plus `residual`."""

    weight: WeightSpec | None = None
    kernel: int = 1
    stride: int = 1
    residual: int | None = None

    def reads(self) -> list[int]:
        return [*self.inputs, *([] if self.residual is None else [self.residual])]

    def rename(self, names: Callable[[int], int]) -> None:
        super().rename(names)
        self.residual = None if self.residual is None else names(self.residual)

    @property
    def geometry(self) -> tuple[int, int]:
        return self.kernel, self.stride


@dataclass
class SumNode(Node):
    """The sum of `terms`."""

    terms: list[ResampledTerm] = field(default_factory=list)

    def reads(self) -> list[int]:
        return [t.value for t in self.terms]

    def rename(self, names: Callable[[int], int]) -> None:
        self.terms = [replace(t, value=names(t.value)) for t in self.terms]


class CatNode(Node):
    """Concatenation over channels."""


@dataclass
class PoolNode(Node):
    """Mean over size x size windows, `size` apart."""

    size: int = 1


@dataclass
class SliceNode(Node):
    """Channels of the input from `begin` on: a view, which computes nothing."""

    begin: int = 0


@dataclass
class CallNode(Node):
    """Any other function, called with the model's own arguments."""

    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    floating: bool = True

    def reads(self) -> list[int]:
        return refs((self.args, self.kwargs))

    def rename(self, names: Callable[[int], int]) -> None:
        self.args, self.kwargs = rename_refs((self.args, self.kwargs), names)


def refs(tree: Any) -> list[int]:
    """Return the values that references in nested lists, tuples and mappings name."""
    return [leaf.value for leaf in tree_leaves(tree, is_leaf=_is_ref) if isinstance(leaf, ValueRef)]


def rename_refs(tree: Any, names: Callable[[int], int]) -> Any:
    """Replace the values that references in nested lists, tuples and mappings name."""
    return tree_map(
        lambda leaf: ValueRef(names(leaf.value)) if isinstance(leaf, ValueRef) else leaf, tree, is_leaf=_is_ref
    )


def _is_ref(leaf: Any) -> bool:
    return isinstance(leaf, (ValueRef, StateRef))


@dataclass
class Graph:
    """Nodes by the value they make.

    Attributes:
        nodes: in an order in which they can run, except inside a pass.
        output: what the network returns, with tensors as :class:`ValueRef`.
        parameters: shapes of the model's parameters and buffers by name.
    """

    nodes: dict[int, Node]
    output: Any
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def outputs(self) -> list[int]:
        return refs(self.output)

    def uses(self) -> Counter[int]:
        """How often each value is read; an output of the network counts."""
        counts = Counter(self.outputs())
        for node in self.nodes.values():
            counts.update(node.reads())
        return counts

    def add(self, node: Node) -> int:
        """Add a node and return the number of its value."""
        value = max(self.nodes) + 1
        self.nodes[value] = node
        return value

    def replace(self, news: Mapping[int, int]) -> None:
        """Replace each key of `news` by its value wherever it is read. Values may be replaced in turn."""

        def names(value: int) -> int:
            while value in news:
                value = news[value]
            return value

        for node in self.nodes.values():
            node.rename(names)
        self.output = rename_refs(self.output, names)

    def prune(self) -> None:
        """Drop nodes that the output does not depend on. Nodes may stand in any order."""
        wanted, stack = {0}, self.outputs()
        while stack:
            value = stack.pop()
            if value not in wanted:
                wanted.add(value)
                stack += self.nodes[value].reads()
        self.nodes = {v: n for v, n in self.nodes.items() if v in wanted}

    def sort(self) -> None:
        """Sort nodes topologically, stable otherwise."""
        done: dict[int, Node] = {}
        state: set[int] = set()

        for root in self.nodes:
            stack = [root]
            while stack:
                value = stack[-1]
                if value in done:
                    stack.pop()
                    continue
                missing = [v for v in self.nodes[value].reads() if v not in done]
                if missing and value not in state:
                    state.add(value)
                    stack += reversed(missing)
                    continue
                done[stack.pop()] = self.nodes[value]
        self.nodes = done
