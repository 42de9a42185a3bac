"""The autotuner: which tactic computes a convolution step, and which sums are fused with their 1x1 convolutions.

Each geometry is measured once. A candidate whose result differs from PyTorch's by more than rounding is rejected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.errors import ImplementationError
from hrnet_fast.implementations import select_implementation
from hrnet_fast.inference.execution.candidate_timing import fastest
from hrnet_fast.inference.execution.cuda_graph import graphed
from hrnet_fast.inference.execution.cudnn_search import cudnn_search, tf32_allowed
from hrnet_fast.inference.execution.fused_sum_trial import FUSED, SumFusionTrial, describe_fusion
from hrnet_fast.inference.execution.sum_fusion import SumFusion
from hrnet_fast.inference.execution.tactics import TACTICS, Geometry, Library, Tactic, operator_unsupported_reason
from hrnet_fast.inference.execution.tuning_cache import TuningResult, key_for, lookup
from hrnet_fast.inference.execution.weight_store import FoldedWeight, WeightStore
from hrnet_fast.inference.plan import Plan

# Relative L2 distance between two right results: rounding of the inputs, the sums and the result.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TF32 = 4e-3
_SPENT = "not measured, the time for measuring was spent"
_UNCOMPILED = "not measured, the time for compiling was spent"

Results = Sequence[Tensor]


class Autotuner:
    """Chooses tactics for one device and dtype.

    Args:
        device, dtype: of the maps.
        prefer: a tactic to take wherever it applies, without measuring; None measures.
        budget: seconds for all measurements; compiling is not counted. When it is spent, convolutions are PyTorch's and
            sums are not fused.

    Attributes:
        results: by geometry of a convolution, or description of a fusion.
        compiled_kernels, compiling: Triton kernels that were compiled before measuring, and the seconds that it took.
        uncompiled: candidates that are not measured, as compiling their kernels would have taken too long.

    Raises:
        ImplementationError: `prefer` is no tactic.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, prefer: str | None = None, budget: float = 10.0
    ) -> None:
        if prefer is not None and prefer not in (*TACTICS, FUSED):
            raise ImplementationError(f"{prefer!r} is no tactic; accepted are {', '.join((*TACTICS, FUSED))}.")
        self.device, self.dtype, self.prefer, self.budget = device, dtype, prefer, budget
        self.results: dict[Geometry | str, TuningResult] = {}
        self.compiled_kernels, self.compiling = 0, 0.0
        self.uncompiled: dict[Geometry | str, set[str]] = {}

    def tactic(self, g: Geometry, weights: FoldedWeight) -> Tactic:
        """Return the tactic for a convolution's geometry. It is measured with `weights`."""
        if g not in self.results:
            self.results[g] = self._choose(g, weights)
        return TACTICS[self.results[g].winner]

    @property
    def fuses_sums(self) -> bool:
        """Whether any sums may be fused."""
        if self.prefer is not None:
            return self.prefer == FUSED
        return operator_unsupported_reason(FUSED, self.device, self.dtype) is None

    def fuses(self, plan: Plan, fusion: SumFusion, weights: WeightStore) -> bool:
        """Return whether the sums of `fusion` are faster together with their 1x1 convolutions."""
        if not self.fuses_sums or plan.batch == 0:
            return False
        if self.prefer is not None:
            return True
        name = describe_fusion(plan, fusion)
        if name not in self.results:
            if self.budget <= 0 or FUSED in self.uncompiled.get(name, ()):
                why = _SPENT if self.budget <= 0 else _UNCOMPILED
                self.results[name] = TuningResult(name, "separate", reasons={FUSED: why})
                return False
            trial = SumFusionTrial(plan, fusion, weights, self.tactic, self.random_map)
            separate, fused = (_Candidate(self, run, run, trial.separate) for run in (trial.separate, trial.fused))
            self.results[name] = self._measured(name, {"separate": separate, FUSED: fused}, "separate")
        return self.results[name].winner == FUSED

    def launches(self, g: Geometry, weights: FoldedWeight) -> dict[str, Callable[[], Any]]:
        """Return calls that launch what a measurement of a geometry would, for the tactics with Triton kernels."""
        if g in self.results or self.prefer is not None or 0 in g.out or self.budget <= 0:
            return {}
        able = self._able(g)
        known = lookup(self._key(f"convolution {g}"), able)
        wanted = able if known is None else [known.winner]
        triton = [name for name in wanted if self._runs_triton(TACTICS[name].operator)]
        return {name: candidate.launch for name, candidate in self._candidates(g, weights, triton).items()}

    def fusion_launches(self, plan: Plan, fusion: SumFusion, weights: WeightStore) -> dict[str, Callable[[], Any]]:
        """Return the same for a fusion of sums."""
        if describe_fusion(plan, fusion) in self.results or plan.batch == 0 or self.budget <= 0:
            return {}
        trial = SumFusionTrial(plan, fusion, weights, lambda *_: TACTICS[Library.name], self.random_map)
        return {FUSED: trial.fused} if self._runs_triton(FUSED) else {}

    def _runs_triton(self, operator: str | None) -> bool:
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return operator is not None and select_implementation(operator, "auto", like) == "triton"

    def _able(self, g: Geometry) -> list[str]:
        return [name for name, t in TACTICS.items() if t.unsupported_reason(g, self.device, self.dtype) is None]

    def _choose(self, g: Geometry, weights: FoldedWeight) -> TuningResult:
        able = self._able(g)
        if self.prefer is not None or 0 in g.out:
            return TuningResult(str(g), self.prefer if self.prefer in able else Library.name)
        if len(able) == 1:
            return TuningResult(str(g), able[0])
        if self.budget <= 0:
            # Without a comparison, only PyTorch's own convolution is known to be right.
            return TuningResult(str(g), Library.name, reasons={"others": _SPENT})
        late = self.uncompiled.get(g, set())
        compiled = [name for name in able if name not in late]
        result = self._measured(f"convolution {g}", self._candidates(g, weights, compiled), Library.name)
        return replace(result, reasons=result.reasons | dict.fromkeys(late, _UNCOMPILED))

    def _measured(self, what: str, candidates: Mapping[str, _Candidate], default: str) -> TuningResult:
        """Return the fastest candidate, or `default` if none could be measured, as where captures are broken."""
        key, start = self._key(what), time.perf_counter()
        try:
            return fastest(key, candidates, time=0.2, device=self.device)
        except ImplementationError as error:
            return TuningResult(key, default, reasons={"not measured": str(error)})
        finally:
            self.budget -= time.perf_counter() - start - sum(c.preparing for c in candidates.values())

    def _key(self, what: str) -> str:
        tf32 = self.device.type == "cuda" and tf32_allowed()
        return key_for(what, f"tf32={tf32}", device=self.device, dtype=self.dtype)

    def _candidates(self, g: Geometry, weights: FoldedWeight, able: list[str]) -> Mapping[str, _Candidate]:
        """Return calls of each tactic on random maps with the step's strides, with copies to the result's place."""
        made: list[Tensor] = []

        def maps() -> list[Tensor]:  # a result from the cache needs none
            if not made:
                made.append(self.random_map(g.source, g.pitches[0]))
                made.extend(self.random_map(g.out, pitch) for pitch in (g.out[1], g.pitches[1]))
            return made

        def call(tactic: Tactic) -> None:
            x, residual, out = maps()
            place = None if g.adoptable and tactic.fresh(g) else out
            added = (out if g.over else residual) if g.residual else None
            result = tactic.run(g, weights, x, added, place)
            if place is not None and result is not place:
                place.copy_(result)

        def result(tactic: Tactic) -> Results:
            x, residual, _ = maps()
            return [tactic.run(g, weights, x, residual.clone() if g.residual else None, None)]

        return {
            name: _Candidate(
                self, lambda t=TACTICS[name]: call(t), lambda t=TACTICS[name]: result(t),  # type: ignore[misc]
                lambda: result(TACTICS[Library.name]),
            )
            for name in able
        }  # fmt: skip

    def random_map(self, shape: tuple[int, int, int, int], pitch: int) -> Tensor:
        """Return the first channels of a random channels-last map with `pitch` channels."""
        n, c, h, w = shape
        whole = torch.randn(n, h, w, pitch, device=self.device).to(self.dtype)
        return whole.permute(0, 3, 1, 2)[:, :c]

    def timed(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return what is timed of a call: on CUDA a graph of several, as a launch takes longer than a small kernel."""
        return graphed(self.device, call) if self.device.type == "cuda" else call

    @property
    def tolerance(self) -> float:
        """Accepted relative L2 distance to PyTorch's result."""
        tf32 = self.device.type == "cuda" and self.dtype == torch.float32 and tf32_allowed()
        return _TF32 if tf32 else TOLERANCES[self.dtype]


class _Candidate:
    """A call to be timed. Its first call compares its results with the expected ones.

    Attributes:
        preparing: seconds of the comparison on CUDA, which compiles and loads kernels, and searches cuDNN's algorithms.
    """

    def __init__(
        self,
        autotuner: Autotuner,
        call: Callable[[], Any],
        results: Callable[[], Results],
        expected: Callable[[], Results],
    ) -> None:
        self._autotuner, self._call, self._results, self._expected = autotuner, call, results, expected
        self._timed: Callable[[], Any] | None = None
        self.preparing = 0.0

    def __call__(self) -> None:
        if self._timed is None:
            if self._autotuner.device.type == "cuda":
                start = time.perf_counter()
                try:
                    with cudnn_search():
                        self._check()
                finally:
                    self.preparing = time.perf_counter() - start
            else:
                self._check()
            self._timed = self._autotuner.timed(self._call)
        self._timed()

    def launch(self) -> None:
        """Run everything once, whatever the results."""
        self._results()
        self._call()

    def _check(self) -> None:
        """Raise ImplementationError where a result differs by more than rounding."""
        for result, wanted in zip(self._results(), self._expected(), strict=True):
            expected = wanted.double()
            error = ((result.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()
            if not error <= self._autotuner.tolerance:
                raise ImplementationError(f"differs from the library's result by {error:.1e}")
