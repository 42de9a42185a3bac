"""The class of accelerated modularized blocks: see :mod:`hrnet_fast.training.fused_modules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.training import branch_streams, compiled, structure_cache, unsupported
from hrnet_fast.training.fused_modules import FusedModule, FusedSequence
from hrnet_fast.training.fusion_layers import FusionLayers, find_terms, resampling_of
from hrnet_fast.training.fusion_plan import plan_fusion
from hrnet_fast.training.matching import hooked
from hrnet_fast.training.stacked_fusion import run_fusion


class FusedModularizedBlock(FusedModule):
    """A modularized block: its branches, which are accelerated on their own, and its fusion, stacked."""

    def unsupported_reasons(self) -> list[str]:
        if "forward" in vars(self):
            return ["its forward was replaced"]
        layers = self._layers()
        reason = layers if isinstance(layers, str) else _statistics_reason(layers.read())
        return [reason] if reason else []

    def forward(self, x: list[Tensor]) -> Any:
        s = self.fused_settings
        reason = next((r for one in x if (r := unsupported.call(one, s.implementation))), None)
        layers = reason or self._layers()
        if isinstance(layers, str):
            return self._plain(layers, x)
        if len(x) != len(self.branches):  # type: ignore[arg-type]
            return self._plain(f"{len(x)} maps for {len(self.branches)} branches", x)  # type: ignore[arg-type]
        operators = s.implementation.operators(x[0])
        native = layers.compiled if compiled.has_compiled_passes(operators) else None
        fusion: Any = layers.read() if native is None else native.read()
        reason = (
            _statistics_reason(fusion)
            or (unsupported.promotion(x[0]) if layers.promotes else None)
            or _misfit_reason(fusion, x, s.exact_scale)
            or unsupported.dtypes(x, fusion.weights())
        )
        if reason is not None:
            return self._plain(reason, x)
        self.last_call_reason = None
        features = None if native is None or branch_streams.active() else self._run_together(x)
        if features is None:
            features = branch_streams.run_branches(self.branches, x)  # type: ignore[arg-type]
        if native is not None:
            return compiled.run_fusion(fusion, features)
        return run_fusion(plan_fusion(fusion.terms, len(features), s.mode, s.align_corners, operators), features)

    def _run_together(self, x: list[Tensor]) -> list[Tensor] | None:
        """Run all branches as one call whose elementwise passes share launches; None where each is to run alone.

        On a CPU each does, and its maps stay in the caches; so it does on a stream of its own in a captured step.
        """
        if not x[0].is_cuda or any(one.device != x[0].device for one in x):
            return None
        calls, memories, s = [], set[str](), self.fused_settings
        for branch in self.branches:  # type: ignore[union-attr]
            if not isinstance(branch, FusedSequence) or "forward" in vars(branch) or hooked([branch]):
                return None
            if getattr(branch, "_compiled_call_impl", None) is not None:  # by nn.Module.compile
                return None
            parts = branch.parts()
            chain = parts[0].chain if len(parts) == 1 else ""
            own = branch.fused_settings
            if isinstance(chain, str) or chain.compiled is None or own.implementation != s.implementation:
                return None
            memories.add(own.memory_of(chain))
            if len(memories) > 1 or (chain.promotes and unsupported.promotion(x[0])):
                return None
            calls.append(chain.compiled.read())
        if torch.is_grad_enabled():
            wanted = [one.requires_grad or call.requires_grad() for one, call in zip(x, calls, strict=True)]
            if any(wanted) and not all(wanted):  # one node for all would differentiate the frozen branches too
                return None
        joined = compiled.join_chains(calls)
        outs = None if joined is None else compiled.run_chains(joined, x, memories.pop())
        if outs is None or isinstance(outs, str):
            return None
        for branch in self.branches:  # type: ignore[union-attr]
            branch.last_call_reason = None
        return outs

    def _layers(self) -> FusionLayers | str:
        """The fusion's layers, or why it cannot be stacked."""
        return structure_cache.cached(self, self._inner, self._find_layers)

    def _inner(self) -> list[nn.Module]:
        """Return all modules but the branches', which are read on their own."""
        parts = [child for name, child in self.named_children() if name != "branches"]
        return [m for part in parts for m in part.modules()]

    def _find_layers(self) -> FusionLayers | str:
        s = self.fused_settings
        terms = find_terms(self.fuse_layers)
        if isinstance(terms, str):
            return terms
        if resampling_of(terms) - {(s.mode, s.align_corners)}:
            return "its fuse_layers upsample in several ways, or in another than when it was accelerated"
        others = [child for name, child in self.named_children() if name not in ("branches", "fuse_layers")]
        for child in others:
            if type(child) not in (nn.ReLU, nn.Identity):
                return f"a {type(child).__name__} stands beside its fuse_layers"
        reason = hooked([*self.fuse_layers.modules(), *others])  # type: ignore[operator,union-attr]
        return reason or FusionLayers(terms, s.mode, s.align_corners)


def _statistics_reason(fusion: Any) -> str | None:
    return None if fusion.alike() else "its normalisations differ in where they take their statistics"


def _misfit_reason(fusion: Any, xs: Sequence[Tensor], exact: bool) -> str | None:
    """Say which map does not fit its target; branches keep the sizes of their inputs."""
    sizes = [(x.shape[2], x.shape[3]) for x in xs]
    found = fusion.misfit(sizes, exact)
    return found and f"a map of {sizes[found[0]]} does not fit one of {sizes[found[1]]}"
