"""Sums that ``upsample_conv1x1_sum`` can compute together with the 1x1 convolutions of their terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import ConvStep, Step, SumStep, SumTerm, View, reads, writes

MAX_TERMS = 8  # of one upsample_conv1x1_sum


@dataclass(frozen=True)
class FusedTerm:
    """A term of a fused sum.

    Attributes:
        source: what the launch reads: the convolution's input, or the term itself.
        conv: step number of the 1x1 convolution, or None for a term that is added as it is.
        channels: (begin, end) of the convolution's output that the sum reads.
    """

    source: View
    conv: int | None = None
    channels: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class FusedSum:
    """A sum step by number, and the terms of its launch."""

    step: int
    terms: tuple[FusedTerm, ...]


@dataclass(frozen=True)
class SumFusion:
    """Sums that share 1x1 convolutions: all of them are fused, or none is. The convolutions then need no launch."""

    sums: tuple[FusedSum, ...]
    convs: tuple[int, ...]


def find_sum_fusions(plan: Plan) -> list[SumFusion]:
    """Return the fusions that a plan allows, which have no step in common.

    Post: every reader of a fusion's convolutions is one of its sums, every sum has a resampled term with a convolution,
    and the input of each convolution keeps its values up to the last of these sums, in the order of steps.
    """
    readers = {
        i: found
        for i, step in enumerate(plan.steps)
        if _is_linear_conv1x1(step) and (found := _sum_readers(plan, i, step.out, step.source))  # type: ignore[union-attr]
    }
    while True:
        sums = {s for found in readers.values() for s in found}
        lacking = {s for s in sums if not any(t.mode != "identity" for t, _ in _convolved(plan, readers, s))}
        rejected = [i for i, found in readers.items() if not lacking.isdisjoint(found)]
        if not rejected:
            break
        for i in rejected:
            del readers[i]
    return [
        SumFusion(tuple(_fused_sum(plan, readers, s) for s in sorted(group)), tuple(convs))
        for convs, group in _components(readers)
    ]


def _is_linear_conv1x1(step: Step) -> bool:
    """Whether a step is a 1x1 convolution that commutes with interpolation: without residual and ReLU."""
    return (
        isinstance(step, ConvStep)
        and (step.kernel, step.stride, step.residual) == (1, 1, None)
        and step.relu[0] >= step.relu[1]
    )


def _sum_readers(plan: Plan, conv: int, out: View, source: View) -> set[int]:
    """Return the steps that read a convolution's result; none where the convolution cannot be fused into them."""
    found: set[int] = set()
    source_changed = False
    for k in range(conv + 1, len(plan.steps)):
        step = plan.steps[k]
        views = [view for view in reads(step) if view.overlaps(out)]
        if views:
            inside = all(_contains(out, view) for view in views)
            if source_changed or not inside or not isinstance(step, SumStep) or not _is_fusible(step):
                return set()
            found.add(k)
        written = writes(step)
        if written is not None and written.overlaps(out):
            return found if _contains(written, out) else set()
        source_changed = source_changed or (written is not None and written.overlaps(source))
    return found


def _contains(outer: View, inner: View) -> bool:
    return (
        outer.buffer == inner.buffer
        and outer.offset <= inner.offset
        and inner.offset + inner.channels <= outer.offset + outer.channels
    )


def _is_fusible(step: SumStep) -> bool:
    """Whether the operator takes a sum: few terms, resampled in one mode."""
    modes = {(t.mode, t.align_corners and t.mode == "bilinear") for t in step.terms if t.mode != "identity"}
    return len(step.terms) <= MAX_TERMS and len(modes) <= 1


def _convolved(plan: Plan, readers: dict[int, set[int]], number: int) -> list[tuple[SumTerm, int]]:
    """Return the terms of a sum that a fusible convolution computes, with that convolution."""
    step = plan.steps[number]
    assert isinstance(step, SumStep)
    return [
        (term, conv)
        for term in step.terms
        for conv, sums in readers.items()
        if number in sums and term.source.overlaps(plan.steps[conv].out)  # type: ignore[union-attr]
    ]


def _fused_sum(plan: Plan, readers: dict[int, set[int]], number: int) -> FusedSum:
    step = plan.steps[number]
    assert isinstance(step, SumStep)
    convs = {term.source: conv for term, conv in _convolved(plan, readers, number)}
    terms = []
    for term in step.terms:
        if term.source not in convs:
            terms.append(FusedTerm(term.source))
            continue
        conv = plan.steps[convs[term.source]]
        assert isinstance(conv, ConvStep)
        begin = term.source.offset - conv.out.offset
        terms.append(FusedTerm(conv.source, convs[term.source], (begin, begin + term.source.channels)))
    return FusedSum(number, tuple(terms))


def _components(readers: dict[int, set[int]]) -> Sequence[tuple[list[int], set[int]]]:
    """Return convolutions and sums that are connected, component by component."""
    components: list[tuple[list[int], set[int]]] = []
    for conv, sums in readers.items():
        touching = [c for c in components if not c[1].isdisjoint(sums)]
        components = [c for c in components if c not in touching]
        merged = sorted([conv, *(i for convs, _ in touching for i in convs)])
        components.append((merged, sums.union(*(group for _, group in touching))))
    return components
