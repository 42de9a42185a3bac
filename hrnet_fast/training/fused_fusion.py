"""The class of accelerated modularized blocks: see :mod:`hrnet_fast.training.fused_modules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hrnet_fast.training import branch_streams, compiled, structure_cache, unsupported
from hrnet_fast.training.fused_modules import FusedModule
from hrnet_fast.training.fusion_layers import FusionLayers, find_terms, resampling_of
from hrnet_fast.training.fusion_plan import plan_fusion
from hrnet_fast.training.joined_sequences import JoinedSequences, can_join, find_joined
from hrnet_fast.training.matching import altered
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
        reason = unsupported.call(x, s.implementation)
        layers = reason or self._layers()
        if isinstance(layers, str):
            return self._plain(layers, x)
        if len(x) != len(self.branches):  # type: ignore[arg-type]
            return self._plain(f"{len(x)} maps for {len(self.branches)} branches", x)  # type: ignore[arg-type]
        operators = s.implementation.operators(x[0])
        native = layers.compiled if compiled.has_compiled_passes(operators, layers.synchronised) else None
        fusion: Any = layers.read() if native is None else native.read()
        reason = (
            _statistics_reason(fusion)
            or (unsupported.promotion(x[0]) if layers.promotes else None)
            or _misfit_reason(fusion, x, s.exact_scale)
            or unsupported.dtypes(x, fusion.has_dtype_of)
        )
        if reason is not None:
            return self._plain(reason, x)
        self.note_call(None)
        joined = self._joined() if native is not None and can_join(x, s.implementation) else None
        features = None if joined is None else joined.run(x)
        if features is None:
            features = branch_streams.run_branches(self.branches, x)  # type: ignore[arg-type]
        if native is not None:
            return compiled.run_fusion(fusion, features)
        return run_fusion(plan_fusion(fusion.terms, len(features), s.mode, s.align_corners, operators), features)

    def _joined(self) -> JoinedSequences | None:
        branches: Any = self.branches
        return structure_cache.cached(
            self, branches.modules, lambda: find_joined(branches, self.fused_settings.implementation),
            structure_cache.JOINED,
        )  # fmt: skip

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
        reason = altered([*self.fuse_layers.modules(), *others])  # type: ignore[operator,union-attr]
        return reason or FusionLayers(terms, s.mode, s.align_corners)


def _statistics_reason(fusion: Any) -> str | None:
    return None if fusion.alike() else "its normalisations differ in where they take their statistics"


def _misfit_reason(fusion: Any, xs: Sequence[Tensor], exact: bool) -> str | None:
    """Say which map does not fit its target; branches keep the sizes of their inputs."""
    sizes = [(x.shape[2], x.shape[3]) for x in xs]
    found = fusion.misfit(sizes, exact)
    return found and f"a map of {sizes[found[0]]} does not fit one of {sizes[found[1]]}"
