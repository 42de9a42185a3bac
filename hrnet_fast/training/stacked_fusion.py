"""The fusion unit in training and evaluation: stacked convolutions, joint statistics, one sum per target.

Kept for backward are the stacked convolutions' outputs, their normalisations and the results; the branches' outputs
follow from what the branches keep (:mod:`hrnet_fast.training.recompute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hrnet_fast.implementations import implementation_within_network
from hrnet_fast.ops.bn_act_primitives import BnActPrimitives, bn_act_primitives
from hrnet_fast.ops.fuse_sum import compute, gradients
from hrnet_fast.training.batch_norm import Count, count_batches, input_gradient, normalise
from hrnet_fast.training.fusion_plan import FusionPlan, FusionTerm, StackedConvs, bias_of, stacked_weight
from hrnet_fast.training.memory_format import in_compute_format, in_format_of
from hrnet_fast.training.recompute import Recomputation, attach, recomputation_of
from hrnet_fast.training.residual_chain import PER_STEP, NoneOr, convolve, convolve_backward, norm_gradient


class _SavedGroup(NamedTuple):
    """What one group leaves: its output, its normalisation, and the values per channel behind that."""

    y: Tensor
    affine: Tensor
    count: Count  # type: ignore[assignment]


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
        recipes = tuple(recomputation_of(x) for x in xs)
        found: tuple[Tensor, ...] = _FusionFunction.apply(fusion, recipes, *xs, *parameters)  # type: ignore[no-untyped-call]
        if in_compute_format(xs[0]) is not xs[0]:
            attach(*found)  # chains lay them out anew and would keep those copies
        return list(found)
    return _execute(fusion, bn_act_primitives(implementation_within_network("bn_act", fusion.impl), xs[0]), xs, [])


def _execute(fusion: FusionPlan, p: BnActPrimitives, xs: Sequence[Tensor], keep: list[_SavedGroup]) -> list[Tensor]:
    hidden: dict[int, Tensor] = {}  # by group: the activation of the members whose terms go on
    for wave in fusion.waves:
        groups = [fusion.groups[k] for k in wave]
        ys = [_convolved(g, xs, hidden, fusion) for g in groups]
        found = normalise(p, ys, [m.step.norm for g in groups for m in g.members])
        for k, y, (affine, count) in zip(wave, ys, found, strict=True):
            keep.append(_SavedGroup(y, affine, count))
            group = fusion.groups[k]
            if group.going_on < y.shape[1]:
                hidden[k] = _activated(p, group, keep[k])
    endings = fusion.endings()
    return [_target(fusion, endings, row, xs, keep) for row in fusion.terms]


def _convolved(group: StackedConvs, xs: Sequence[Tensor], hidden: dict[int, Tensor], fusion: FusionPlan) -> Tensor:
    weight = stacked_weight([m.step.weight for m in group.members])
    return convolve(_input(group, xs, hidden, fusion), weight, bias_of(group), group.step)


def _input(group: StackedConvs, xs: Sequence[Tensor], hidden: dict[int, Tensor], fusion: FusionPlan) -> Tensor:
    if group.parent is None:
        return xs[group.source]
    parent = fusion.groups[group.parent]
    member = parent.members[group.feeder]
    h = hidden[group.parent]
    first = parent.going_on
    return h if h.shape[1] == member.end - member.begin else h[:, member.begin - first : member.end - first]


def _activated(p: BnActPrimitives, group: StackedConvs, kept: _SavedGroup) -> Tensor:
    first = group.going_on
    return p.bn_act(kept.y[:, first:], kept.affine[:, first:], None, True)


def _target(
    fusion: FusionPlan, endings: dict[tuple[int, int], tuple[int, int]], row: Sequence[FusionTerm],
    xs: Sequence[Tensor], keep: Sequence[_SavedGroup],
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
    size = list(xs[row[0].target].shape[-2:])
    return compute(
        maps,
        scales,
        shifts,
        size,
        fusion.mode,
        fusion.align_corners,
        True,
        implementation_within_network("fuse_sum", fusion.impl),
    )


class _FusionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fusion: FusionPlan, recipes: tuple[Recomputation | None, ...], *tensors: NoneOr
    ) -> tuple[Tensor, ...]:
        xs: list[Tensor] = list(tensors[: fusion.sources])  # type: ignore[arg-type]
        # A target that nothing used has no gradient; nor have the parameters that serve it alone, as in plain modules.
        ctx.set_materialize_grads(False)
        ctx.fusion, ctx.recipes = fusion, recipes
        ctx.pieces = bn_act_primitives(implementation_within_network("bn_act", fusion.impl), xs[0])
        ctx.again, ctx.cache = _again, None
        keep: list[_SavedGroup] = []
        outs = _execute(fusion, ctx.pieces, xs, keep)
        ctx.counts = [k.count for k in keep]
        ctx.save_for_backward(
            *[k.y for k in keep], *[k.affine for k in keep], *outs,
            *[x for x, recipe in zip(xs, recipes, strict=True) if recipe is None], *tensors[fusion.sources :],
        )  # fmt: skip
        return tuple(outs)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: NoneOr) -> tuple[Any, ...]:
        done = _Backward(ctx).run(grads)
        ctx.cache = None
        return (None, None, *done)


def _again(ctx: Any, index: int) -> Tensor:
    """A result, for the chain that it is the input of."""
    return _saved(ctx)[2 * len(ctx.fusion.groups) + index]


def _saved(ctx: Any) -> list[Tensor]:
    """What was kept. Within one pass, ``torch.utils.checkpoint`` lets tensors be fetched only once."""
    task = torch._C._current_graph_task_id()
    if ctx.cache is None or ctx.cache[0] != task:
        ctx.cache = (task, list(ctx.saved_tensors))
    found: list[Tensor] = ctx.cache[1]
    return found


class _Backward:
    """One backward pass: targets first, then the groups from the last wave to the first."""

    def __init__(self, ctx: Any) -> None:
        self.fusion: FusionPlan = ctx.fusion
        self.p: BnActPrimitives = ctx.pieces
        self.endings = self.fusion.endings()
        saved = _saved(ctx)
        n, targets = len(self.fusion.groups), len(self.fusion.terms)
        parts = zip(saved[:n], saved[n : 2 * n], ctx.counts, strict=True)
        self.kept = [_SavedGroup(y, affine, count) for y, affine, count in parts]
        self.outs = saved[2 * n : 2 * n + targets]
        left = iter(saved[2 * n + targets :])
        self.xs = [
            next(left) if recipe is None else in_format_of(recipe.tensor(), self.outs[0]) for recipe in ctx.recipes
        ]
        self.parameters = list(left)
        self.want = ctx.needs_input_grad[2:]
        self.to_branch: list[NoneOr] = [None] * self.fusion.sources
        # Gradients of members' outputs: normalised where a term ends, activated where it goes on.
        self.of_member: dict[tuple[int, int], Tensor] = {}
        self.hidden = {
            k: _activated(self.p, g, self.kept[k])
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
        """Hand the masked gradient to terms of the target's size, and its adjoint to upsampled ones."""
        maps = [self.kept[self.endings[t.source, t.target][0]].y if t.steps else self.xs[t.source] for t in row]
        sizes = [s for m in maps for s in m.shape[-2:]]
        same = [m.shape[-2:] == out.shape[-2:] for m in maps]
        first = same.index(True)  # one masked gradient serves all terms of the target's size
        wanted = [int(not s or k == first) for k, s in enumerate(same)] + [0] * len(row)
        absent = grad.new_empty(0)
        empty = [absent] * len(row)
        found = gradients(
            grad,
            out,
            empty,
            empty,
            sizes,
            self.fusion.mode,
            self.fusion.align_corners,
            True,
            wanted,
            implementation_within_network("fuse_sum", self.fusion.impl),
        )
        for k, term in enumerate(row):
            g = found[first] if same[k] else found[k]
            if term.steps:
                self.of_member[self.endings[term.source, term.target]] = g
            else:
                self._add(term.source, g)

    def _group(self, k: int, start: int, end: int) -> list[NoneOr]:
        group, own = self.fusion.groups[k], self.kept[k]
        given = [self.of_member.pop((k, j), None) for j in range(len(group.members))]
        if all(part is None for part in given):
            return [None] * (end - start)
        relu = not any(m.ends for m in group.members)  # then one mask, computed again, serves all
        parts = [self._part(k, j, part, relu) for j, part in enumerate(given)]
        g = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        sums, _ = self.p.backward_sums(g, None, own.y, own.affine, None, relu, False)
        dy = input_gradient(self.p, g, own.y, own.affine, sums, own.count, group.step.norm, relu)
        parameters, want = (
            self.parameters[start:end],
            self.want[self.fusion.sources + start : self.fusion.sources + end],
        )
        weight = stacked_weight([parameters[PER_STEP * j] for j in range(len(group.members))])
        x = _input(group, self.xs, self.hidden, self.fusion)
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
        """One member's share of its group's gradient, masked where ReLU followed."""
        group, y = self.fusion.groups[k], self.kept[k].y
        member, first = group.members[j], group.going_on
        if grad is None:
            shape = (y.shape[0], member.end - member.begin, *y.shape[2:])
            return torch.zeros(shape, dtype=y.dtype, device=y.device)
        if member.ends or masked_later:
            return grad
        h = self.hidden[k][:, member.begin - first : member.end - first]
        masked: Tensor = torch.ops.aten.threshold_backward(grad, h, 0)
        return masked
