"""Fusions in training and evaluation: stacked convolutions, joint statistics, one sum per target.

Kept for backward are the stacked convolutions' outputs, their normalisations and the results; the branches' outputs
are computed again (:mod:`hrnet_fast.training.recompute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrnet_fast.ops.primitives import (
    BnActPrimitives,
    fuse_sum_backward,
    fuse_sum_forward,
    load_bn_act,
    memory_format_of,
)
from hrnet_fast.training.batch_norm import count_batches, normalise
from hrnet_fast.training.conv_norm import PER_STEP, NoneOr, SavedConv, convolve, convolve_backward, norm_gradient
from hrnet_fast.training.fusion_plan import FusionPlan, FusionTerm, StackedConvs, bias_of, stacked_weight
from hrnet_fast.training.memory_format import in_compute_format
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of, saved_tensors


def run_fusion(fusion: FusionPlan, xs: Sequence[Tensor]) -> list[Tensor]:
    """Return every target: [N, C_r, H_r, W_r]; differentiable once, in every branch and parameter.

    Args:
        fusion: the plan; of one dtype with the branches.
        xs: the branches' outputs, highest resolution first; left as they are.
    """
    members = fusion.members()
    parameters = [p for m in members for p in m.step.parameters()]
    count_batches([m.step.norm for m in members])
    tensors = [t for t in (*xs, *parameters) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        recomputations = tuple(recomputation_of(x) for x in xs)
        found: tuple[Tensor, ...] = _FusionFunction.apply(fusion, recomputations, *xs, *parameters)  # type: ignore[no-untyped-call]
        if in_compute_format(xs[0]) is not xs[0]:
            attach(*found)  # chains convert their layout and would keep those copies
        return list(found)
    return _fusion_forward(fusion, xs, [])


def _fusion_forward(fusion: FusionPlan, xs: Sequence[Tensor], keep: list[SavedConv]) -> list[Tensor]:
    primitives = load_bn_act(fusion.operators.bn_act)
    hidden: dict[int, Tensor] = {}  # by group: the activation of the members whose terms continue
    for wave in fusion.waves:
        groups = [fusion.groups[k] for k in wave]
        ys = [_convolved(g, xs, hidden, fusion) for g in groups]
        found = normalise(primitives, ys, [m.step.norm for g in groups for m in g.members])
        for k, y, (affine, count) in zip(wave, ys, found, strict=True):
            keep.append(SavedConv(y, affine, count))
            group = fusion.groups[k]
            if group.first_continuing < y.shape[1]:
                hidden[k] = _activated(primitives, group, keep[k])
    endings = fusion.endings()
    return [_target(fusion, endings, row, xs, keep) for row in fusion.terms]


def _convolved(group: StackedConvs, xs: Sequence[Tensor], hidden: dict[int, Tensor], fusion: FusionPlan) -> Tensor:
    weight = stacked_weight([m.step.weight for m in group.members])
    return convolve(_group_input(group, xs, hidden, fusion), weight, bias_of(group), group.step)


def _group_input(group: StackedConvs, xs: Sequence[Tensor], hidden: dict[int, Tensor], fusion: FusionPlan) -> Tensor:
    if group.parent is None:
        return xs[group.source]
    parent = fusion.groups[group.parent]
    member = parent.members[group.feeder]
    h = hidden[group.parent]
    first = parent.first_continuing
    return h if h.shape[1] == member.end - member.begin else h[:, member.begin - first : member.end - first]


def _activated(primitives: BnActPrimitives, group: StackedConvs, saved: SavedConv) -> Tensor:
    """Return the activation of the members whose terms continue."""
    first = group.first_continuing
    return primitives.bn_act(saved.y[:, first:], saved.affine[:, first:], None, True)


def _target(
    fusion: FusionPlan, endings: dict[tuple[int, int], tuple[int, int]], row: Sequence[FusionTerm],
    xs: Sequence[Tensor], keep: Sequence[SavedConv],
) -> Tensor:  # fmt: skip
    absent = xs[0].new_empty(0)
    maps, scales, shifts = [], [], []
    for term in row:
        if not term.steps:
            maps.append(xs[term.source])
            scales.append(absent)
            shifts.append(absent)
            continue
        k, j = endings[term.source, term.target]
        own = slice(fusion.groups[k].members[j].begin, fusion.groups[k].members[j].end)
        maps.append(keep[k].y[:, own])
        scales.append(keep[k].affine[2, own])
        shifts.append(keep[k].affine[3, own])
    size = xs[row[0].target].shape[-2:]
    implementation = fusion.operators.fuse_sum
    return fuse_sum_forward(maps, scales, shifts, size, fusion.mode, fusion.align_corners, True, implementation)


class _FusionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fusion: FusionPlan, recomputations: tuple[Recomputation | None, ...], *tensors: NoneOr
    ) -> tuple[Tensor, ...]:
        xs: list[Tensor] = list(tensors[: fusion.sources])  # type: ignore[arg-type]
        # A target that nothing uses has no gradient; nor have the parameters of it alone, as in plain modules.
        ctx.set_materialize_grads(False)
        ctx.fusion, ctx.recomputations = fusion, recomputations
        ctx.recompute, ctx.cache = _saved_target, None
        keep: list[SavedConv] = []
        outs = _fusion_forward(fusion, xs, keep)
        ctx.counts = [k.count for k in keep]
        ctx.save_for_backward(
            *[k.y for k in keep], *[k.affine for k in keep], *outs,
            *[x for x, again in zip(xs, recomputations, strict=True) if again is None], *tensors[fusion.sources :],
        )  # fmt: skip
        return tuple(outs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: NoneOr) -> tuple[Any, ...]:
        done = _Backward(ctx).run(grads)
        ctx.cache = None
        return (None, None, *done)


def _saved_target(ctx: Any, index: int) -> Tensor:
    """Return a target, for the chain that it is the input of."""
    return saved_tensors(ctx)[2 * len(ctx.fusion.groups) + index]


class _Backward:
    """One backward pass: targets first, then the groups from the last wave to the first."""

    def __init__(self, ctx: Any) -> None:
        self.fusion: FusionPlan = ctx.fusion
        self.primitives = load_bn_act(self.fusion.operators.bn_act)
        self.endings = self.fusion.endings()
        saved = saved_tensors(ctx)
        n, targets = len(self.fusion.groups), len(self.fusion.terms)
        parts = zip(saved[:n], saved[n : 2 * n], ctx.counts, strict=True)
        self.saved = [SavedConv(y, affine, count) for y, affine, count in parts]
        self.outs = saved[2 * n : 2 * n + targets]
        left = iter(saved[2 * n + targets :])
        layout = memory_format_of(self.outs[0])
        again = [r and r.tensor().contiguous(memory_format=layout) for r in ctx.recomputations]
        self.xs: list[Tensor] = [next(left) if x is None else x for x in again]
        self.parameters = list(left)
        self.want = ctx.needs_input_grad[2:]
        self.to_branch: list[NoneOr] = [None] * self.fusion.sources
        # Gradients of members' outputs: of the normalised ones where a term ends, of the activated ones where not.
        self.of_member: dict[tuple[int, int], Tensor] = {}
        self.hidden = {
            k: _activated(self.primitives, g, self.saved[k])
            for k, g in enumerate(self.fusion.groups)
            if any(not m.ends for m in g.members)
        }

    def run(self, grads: Sequence[NoneOr]) -> list[NoneOr]:
        for row, grad, out in zip(self.fusion.terms, grads, self.outs, strict=True):
            if grad is not None:
                self._target(row, grad, out)
        found: list[NoneOr] = [None] * len(self.parameters)
        starts, position = [], 0
        for g in self.fusion.groups:
            starts.append(position)
            position += PER_STEP * len(g.members)
        for k in reversed(range(len(self.fusion.groups))):
            end = starts[k] + PER_STEP * len(self.fusion.groups[k].members)
            found[starts[k] : end] = self._group(k, starts[k], end)
        return self.to_branch + found

    def _add(self, branch: int, grad: Tensor) -> None:
        before = self.to_branch[branch]
        self.to_branch[branch] = grad if before is None else before + grad

    def _target(self, row: Sequence[FusionTerm], grad: Tensor, out: Tensor) -> None:
        """Find the terms' gradients: the masked gradient at the target's size, its adjoint for upsampled terms."""
        maps = [self.saved[self.endings[t.source, t.target][0]].y if t.steps else self.xs[t.source] for t in row]
        sizes = [s for m in maps for s in m.shape[-2:]]
        same = [m.shape[-2:] == out.shape[-2:] for m in maps]
        first = same.index(True)  # one masked gradient serves all terms of the target's size
        wanted = [int(not s or k == first) for k, s in enumerate(same)] + [0] * len(row)
        empty = [grad.new_empty(0)] * len(row)
        found = fuse_sum_backward(
            grad, out, empty, empty, sizes, self.fusion.mode, self.fusion.align_corners, True, wanted,
            self.fusion.operators.fuse_sum,
        )  # fmt: skip
        for k, term in enumerate(row):
            g = found[first] if same[k] else found[k]
            if term.steps:
                self.of_member[self.endings[term.source, term.target]] = g
            else:
                self._add(term.source, g)

    def _group(self, k: int, start: int, end: int) -> list[NoneOr]:
        group, own = self.fusion.groups[k], self.saved[k]
        given = [self.of_member.pop((k, j), None) for j in range(len(group.members))]
        if all(part is None for part in given):
            return [None] * (end - start)
        relu = group.first_continuing == 0  # then one recomputed mask is for all
        parts = [self._part(k, j, part, relu) for j, part in enumerate(given)]
        g = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        sums, _ = self.primitives.backward_sums(g, None, own.y, own.affine, None, relu, False)
        dy = own.input_gradient(self.primitives, g, sums, group.step.norm, relu)
        parameters = self.parameters[start:end]
        want = self.want[self.fusion.sources + start : self.fusion.sources + end]
        weight = stacked_weight([parameters[PER_STEP * j] for j in range(len(group.members))])
        x = _group_input(group, self.xs, self.hidden, self.fusion)
        want_x = group.parent is not None or self.want[group.source]
        dx, dw, db = convolve_backward(
            dy, x, weight, group.step, (want_x, any(want[::PER_STEP]), bias_of(group) is not None and want[1])
        )
        if dx is not None and group.parent is not None:
            self.of_member[group.parent, group.feeder] = dx
        elif dx is not None:
            self._add(group.source, dx)
        grads: list[NoneOr] = []
        for j, m in enumerate(group.members):
            if given[j] is None:
                grads += [None] * PER_STEP
                continue
            _, _, scale, shift = parameters[PER_STEP * j : PER_STEP * (j + 1)]
            own_want = want[PER_STEP * j : PER_STEP * (j + 1)]
            grads.append(dw[m.begin : m.end] if dw is not None and own_want[0] else None)
            grads.append(db)
            grads.append(norm_gradient(sums[1, m.begin : m.end], scale, own_want[2]))
            grads.append(norm_gradient(sums[0, m.begin : m.end], shift, own_want[3]))
        return grads

    def _part(self, k: int, j: int, grad: NoneOr, masked_later: bool) -> Tensor:
        """Return one member's channels of its group's gradient, masked where ReLU followed."""
        group, y = self.fusion.groups[k], self.saved[k].y
        member, first = group.members[j], group.first_continuing
        if grad is None:
            shape = (y.shape[0], member.end - member.begin, *y.shape[2:])
            return torch.zeros(shape, dtype=y.dtype, device=y.device)
        if member.ends or masked_later:
            return grad
        h = self.hidden[k][:, member.begin - first : member.end - first]
        masked: Tensor = torch.ops.aten.threshold_backward(grad, h, 0)
        return masked
