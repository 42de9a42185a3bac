"""A fusion of sums on random maps: by separate steps, and by ``upsample_conv1x1_sum``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from hrnet_fast.inference.execution.arena import adoptable
from hrnet_fast.inference.execution.sum_fusion import FusedSum, SumFusion
from hrnet_fast.inference.execution.sums import fused, sum_implementation
from hrnet_fast.inference.execution.tactics import Geometry, Tactic, geometry
from hrnet_fast.inference.execution.weight_store import FoldedWeight, FusedSumWeights, WeightStore
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import ConvStep, SumStep, View
from hrnet_fast.ops import upsample_conv1x1_sum

FUSED = "upsample_conv1x1_sum"


def describe_fusion(plan: Plan, fusion: SumFusion) -> str:
    """Return a text that is equal for fusions of equal shapes, strides, modes and activations."""
    steps = [plan.steps[i] for i in (*fusion.convs, *(s.step for s in fusion.sums))]
    pitches = [plan.buffers[t.source.buffer].channels for s in fusion.sums for t in s.terms]
    corners = sorted({t.align_corners for s in steps if isinstance(s, SumStep) for t in s.terms})
    texts = "; ".join(plan.describe(step) for step in steps)
    return f"{FUSED} of {plan.batch} images @{pitches} align_corners={corners}: {texts}"


def fused_sum_weights(plan: Plan, fused_sum: FusedSum, weights: WeightStore) -> FusedSumWeights:
    """Return the weights of a fused sum."""
    terms = []
    for term in fused_sum.terms:
        conv = None if term.conv is None else plan.steps[term.conv]
        terms.append((plan.weights[conv.weight], term.channels) if isinstance(conv, ConvStep) else None)
    return weights.fused_sum(terms)


def run_fused_sum(step: SumStep, xs: Sequence[Tensor], weights: FusedSumWeights, size: tuple[int, int]) -> Tensor:
    """Return the sum [N, C, *size] in new memory, from the inputs of its convolutions."""
    resampled = next(t for t in step.terms if t.mode != "identity")
    return upsample_conv1x1_sum(
        xs, weights.weights, bias=weights.bias, size=size, mode=resampled.mode,
        align_corners=resampled.align_corners and resampled.mode == "bilinear",
        activation="relu" if step.relu else None,
    )  # fmt: skip


class SumFusionTrial:
    """Both variants of a fusion on the same maps.

    Args:
        plan, fusion: what is measured.
        weights: of the plan.
        tactic: chooses the tactic of a convolution.
        random_map: makes a map of a shape and a pitch in channels.
    """

    def __init__(
        self,
        plan: Plan,
        fusion: SumFusion,
        weights: WeightStore,
        tactic: Callable[[Geometry, FoldedWeight], Tactic],
        random_map: Callable[[tuple[int, int, int, int], int], Tensor],
    ) -> None:
        self._plan, self._fusion, self._random_map = plan, fusion, random_map
        self._maps: dict[View, Tensor] = {}
        self._convs = []
        for number in fusion.convs:
            step = plan.steps[number]
            assert isinstance(step, ConvStep)
            g, folded = geometry(plan, step, step.out.buffer in adoptable(plan)), weights.get(plan.weights[step.weight])
            self._convs.append((number, step.source, g, folded, tactic(g, folded)))
        self._sums = sum_implementation(plan.dtype, weights.device)
        self._weights = [fused_sum_weights(plan, s, weights) for s in fusion.sums]

    def _map(self, view: View) -> Tensor:
        if view not in self._maps:
            self._maps[view] = self._random_map(self._plan.shape(view), self._plan.buffers[view.buffer].channels)
        return self._maps[view]

    def separate(self) -> list[Tensor]:
        """Return the sums, by a step for each convolution and each sum."""
        made = {n: tactic.run(g, w, self._map(source), None, None) for n, source, g, w, tactic in self._convs}
        results = []
        for fused_sum in self._fusion.sums:
            terms = [
                self._map(t.source) if t.conv is None else made[t.conv][:, slice(*t.channels)] for t in fused_sum.terms
            ]
            step = self._step(fused_sum)
            results.append(fused(step, terms, self._plan.shape(step.out)[2:], self._sums))
        return results

    def fused(self) -> list[Tensor]:
        """Return the sums, by one launch each."""
        results = []
        for fused_sum, weights in zip(self._fusion.sums, self._weights, strict=True):
            step = self._step(fused_sum)
            xs = [self._map(t.source) for t in fused_sum.terms]
            results.append(run_fused_sum(step, xs, weights, self._plan.shape(step.out)[2:]))
        return results

    def _step(self, fused_sum: FusedSum) -> SumStep:
        step = self._plan.steps[fused_sum.step]
        assert isinstance(step, SumStep)
        return step
