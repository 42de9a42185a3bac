"""The plan of a fusion: which convolutions are stacked into one, and which terms every target sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hrnet_fast.implementations import OperatorImplementations
from hrnet_fast.training.conv_norm import ConvNorm, NoneOr


class FusionTerm(NamedTuple):
    """One branch's term of one target: steps with ReLU between and none after, then upsampling if it is coarser."""

    source: int
    target: int
    steps: tuple[ConvNorm, ...]  # none: the identity


class Member(NamedTuple):
    """One term's convolution within a group; its outputs are channels [begin, end) of the group's."""

    term: FusionTerm
    depth: int  # index of its step in the term
    begin: int
    end: int

    @property
    def step(self) -> ConvNorm:
        return self.term.steps[self.depth]

    @property
    def ends(self) -> bool:
        return self.depth == len(self.term.steps) - 1


class StackedConvs(NamedTuple):
    """Convolutions that share an input, executed as one with stacked outputs.

    Attributes:
        members: ordered so that those whose term continues (behind a ReLU) come last.
        parent: index of the group whose member is the input, or None: the branch ``source`` is.
        feeder: index of that member in the parent.
        source: the branch at the start of the term.
    """

    members: tuple[Member, ...]
    parent: int | None
    feeder: int
    source: int

    @property
    def step(self) -> ConvNorm:
        return self.members[0].step

    @property
    def first_continuing(self) -> int:
        """First channel of the members whose terms continue; the number of channels where none does."""
        return next((m.begin for m in self.members if not m.ends), self.members[-1].end)


@dataclass(frozen=True)
class FusionPlan:
    """One fusion at a call.

    Attributes:
        groups: in order of execution; a group comes after its parent.
        waves: numbers of groups per depth: those of one wave depend on earlier waves only.
        terms: per target, in the order of summation.
        sources: number of branches.
        mode, align_corners: of upsampling.
        operators: implementations of the elementwise passes.
    """

    groups: tuple[StackedConvs, ...]
    waves: tuple[tuple[int, ...], ...]
    terms: tuple[tuple[FusionTerm, ...], ...]
    sources: int
    mode: str
    align_corners: bool
    operators: OperatorImplementations

    def members(self) -> list[Member]:
        return [m for g in self.groups for m in g.members]

    def endings(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Return the place of every term's last convolution: (source, target) to (group, member)."""
        return {
            (m.term.source, m.term.target): (k, j)
            for k, g in enumerate(self.groups)
            for j, m in enumerate(g.members)
            if m.ends
        }


def plan_fusion(
    terms: Sequence[Sequence[FusionTerm]],
    sources: int,
    mode: str,
    align_corners: bool,
    operators: OperatorImplementations,
) -> FusionPlan:
    """Stack the convolutions of all terms: those of one geometry that share an input become one."""
    groups: list[StackedConvs] = []
    waves: list[tuple[int, ...]] = []
    # Inputs of the next wave, as (group, member, branch, terms that continue from it); at first, the branches.
    inputs: list[tuple[int | None, int, int, list[FusionTerm]]] = [
        (None, 0, x, [t for row in terms for t in row if t.steps and t.source == x]) for x in range(sources)
    ]
    depth = 0
    while inputs:
        wave: list[int] = []
        following: list[tuple[int | None, int, int, list[FusionTerm]]] = []
        for parent, feeder, source, users in inputs:
            for terms_alike in _by_geometry(users, depth):
                members = _stack(terms_alike, depth)
                following += [(len(groups), k, source, [m.term]) for k, m in enumerate(members) if not m.ends]
                wave.append(len(groups))
                groups.append(StackedConvs(members, parent, feeder, source))
        if wave:
            waves.append(tuple(wave))
        inputs = following
        depth += 1
    return FusionPlan(
        tuple(groups), tuple(waves), tuple(tuple(row) for row in terms), sources, mode, align_corners, operators
    )


def _by_geometry(terms: Sequence[FusionTerm], depth: int) -> list[list[FusionTerm]]:
    found: dict[tuple[object, ...], list[FusionTerm]] = {}
    for term in terms:
        s = term.steps[depth]
        # A bias or channel groups are rare here; such a convolution is stacked with no other.
        alone = term.target if s.groups != 1 or s.bias is not None else -1
        key = (tuple(s.weight.shape[1:]), s.weight.dtype, s.stride, s.padding, s.dilation, alone)
        found.setdefault(key, []).append(term)
    return list(found.values())


def _stack(terms: Sequence[FusionTerm], depth: int) -> tuple[Member, ...]:
    ordered = sorted(terms, key=lambda t: (depth < len(t.steps) - 1, t.target))
    members, start = [], 0
    for term in ordered:
        end = start + term.steps[depth].weight.shape[0]
        members.append(Member(term, depth, start, end))
        start = end
    return tuple(members)


def stacked_weight(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the group's weight, concatenated at every step: that costs little beside its convolution."""
    return weights[0] if len(weights) == 1 else torch.cat(list(weights))


def bias_of(group: StackedConvs) -> NoneOr:
    """Return the bias, which only a convolution that is stacked with no other has."""
    return group.step.bias if len(group.members) == 1 else None
