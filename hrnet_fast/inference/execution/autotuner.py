"""Which way computes a convolution step: measured once for every geometry, remembered, and proven before it counts.

All ways compute the same: one that differs from the library's plain convolution by more than rounding is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.errors import ImplementationError
from hrnet_fast.inference.execution.cuda_graph import graphed
from hrnet_fast.inference.execution.tactics import TACTICS, Geometry, Library, Tactic
from hrnet_fast.inference.execution.tuning_cache import Choice, fastest, key_for
from hrnet_fast.inference.execution.weight_store import FoldedWeight

# Relative L2 distance between two right results: rounding of the inputs, the sums and the result.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TF32 = 4e-3


class Autotuner:
    """Chooses ways for one device and dtype, once for each geometry.

    Args:
        device, dtype: of the maps.
        prefer: name of the way to take wherever it applies, unmeasured; None measures.
        budget: seconds of measuring altogether; geometries that come later take the first way that applies.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        prefer: str | None = None,
        budget: float = 10.0,
    ) -> None:
        if prefer is not None and prefer not in TACTICS:
            raise ImplementationError(f"{prefer!r} is no way of a convolution; there are {', '.join(TACTICS)}.")
        self.device, self.dtype, self.prefer, self.budget = device, dtype, prefer, budget
        self.choices: dict[Geometry, Choice] = {}

    def way(self, g: Geometry, weights: FoldedWeight) -> Tactic:
        """Return the way for a geometry. `weights` are what it would run with."""
        if g not in self.choices:
            self.choices[g] = self._choose(g, weights)
        return TACTICS[self.choices[g].winner]

    def _choose(self, g: Geometry, weights: FoldedWeight) -> Choice:
        able = [name for name, way in TACTICS.items() if way.unsupported_reason(g, self.device, self.dtype) is None]
        if self.prefer is not None or 0 in g.out:
            return Choice(str(g), self.prefer if self.prefer in able else Library.name)
        if len(able) == 1:
            return Choice(str(g), able[0])
        if self.budget <= 0:
            # Unproven, only the library's own way is sure to be right.
            return Choice(str(g), Library.name, reasons={"others": "not measured, the time for measuring was spent"})
        tf32 = self.device.type == "cuda" and _tf32()
        key = key_for(f"convolution {g}", f"tf32={tf32}", device=self.device, dtype=self.dtype)
        start = time.perf_counter()
        try:
            return fastest(key, self._candidates(g, weights, able), time=0.2, device=self.device)
        finally:
            self.budget -= time.perf_counter() - start

    def _candidates(self, g: Geometry, weights: FoldedWeight, able: list[str]) -> Mapping[str, Callable[[], Any]]:
        """Calls of each way on random maps with the step's own strides, copies into place included."""
        made: list[tuple[Tensor, Tensor, Tensor]] = []

        def maps() -> tuple[Tensor, Tensor, Tensor]:  # lazily: what is remembered needs none
            if not made:
                x = self._map(g.source, g.pitches[0])
                made.append((x, self._map(g.out, g.out[1]), self._map(g.out, g.pitches[1])))
            return made[0]

        def call(way: Tactic) -> None:
            x, residual, out = maps()
            place = None if g.adoptable and way.fresh(g) else out
            before = (out if g.over else residual) if g.residual else None
            result = way.run(g, weights, x, before, place)
            if place is not None and result is not place:
                place.copy_(result)

        return {name: _Candidate(self, TACTICS[name], call, maps, g, weights) for name in able}

    def _map(self, shape: tuple[int, int, int, int], pitch: int) -> Tensor:
        n, c, h, w = shape
        whole = torch.randn(n, h, w, pitch, device=self.device).to(self.dtype)
        return whole.permute(0, 3, 1, 2)[:, :c]

    def timed(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return what is timed of a call: on CUDA, a graph of several, as launches take longer than small kernels."""
        return graphed(self.device, call) if self.device.type == "cuda" else call

    @property
    def tolerance(self) -> float:
        tf32 = self.device.type == "cuda" and self.dtype == torch.float32 and _tf32()
        return _TF32 if tf32 else TOLERANCES[self.dtype]


def _tf32() -> bool:
    """Whether convolutions may round operands to TF32; the older flag raises where the newer one was set."""
    newer = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if newer in (None, "none") else newer == "tf32"


class _Candidate:
    """A way as it is timed: its first call proves that it computes the same as the library."""

    def __init__(
        self,
        chooser: Autotuner,
        way: Tactic,
        call: Callable[[Tactic], None],
        maps: Callable[[], tuple[Tensor, Tensor, Tensor]],
        g: Geometry,
        weights: FoldedWeight,
    ) -> None:
        self._chooser, self._way, self._plain, self._maps, self._g, self._weights = chooser, way, call, maps, g, weights
        self._ready: Callable[[], Any] | None = None

    def __call__(self) -> None:
        if self._ready is None:
            self._prove()
            self._ready = self._chooser.timed(lambda: self._plain(self._way))
        self._ready()

    def _prove(self) -> None:
        x, residual, _ = self._maps()
        given = [residual.clone() if self._g.residual else None for _ in range(2)]
        expected = TACTICS[Library.name].run(self._g, self._weights, x, given[0], None).double()
        actual = self._way.run(self._g, self._weights, x, given[1], None).double()
        error = ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()
        if not error <= self._chooser.tolerance:
            raise ImplementationError(f"differs from the library's result by {error:.1e}")
