"""The class of accelerated modularized blocks: see :mod:`hrnet_fast.training.fused_modules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from hrnet_fast.training import structure_cache, unsupported
from hrnet_fast.training.batch_norm import same_statistics
from hrnet_fast.training.conv_norm import ConvNorm
from hrnet_fast.training.fused_modules import FusedModule
from hrnet_fast.training.fusion_plan import FusionTerm, plan_fusion
from hrnet_fast.training.matching import Layers, flat, hooked
from hrnet_fast.training.stacked_fusion import run_fusion


class FusedModularizedBlock(FusedModule):
    """A modularized block: its branches, which are accelerated on their own, and its fusion, stacked."""

    def unsupported_reasons(self) -> list[str]:
        if "forward" in vars(self):
            return ["its forward was replaced"]
        terms = self._terms()
        return [terms] if isinstance(terms, str) else []

    def forward(self, x: list[Tensor]) -> Any:
        s = self.fused_settings
        reason = next((r for one in x if (r := unsupported.call(one, s.implementation))), None)
        terms = reason or self._terms()
        if not isinstance(terms, str):
            weights = [step.weight for row in terms for term in row for step in term.steps]
            terms = self._sizes(x, terms) or unsupported.dtypes(x, weights) or terms
        if isinstance(terms, str):
            return self._plain(terms, x)
        self.last_call_reason = None
        features = [branch(one) for branch, one in zip(self.branches, x, strict=True)]  # type: ignore[arg-type]
        operators = s.implementation.operators(features[0])
        return run_fusion(plan_fusion(terms, len(features), s.mode, s.align_corners, operators), features)

    def _terms(self) -> list[list[FusionTerm]] | str:
        """The fusion as it stands at a call, or why it cannot be stacked."""
        layers = structure_cache.cached(self, self._inner, self._find_layers)
        if isinstance(layers, str):
            return layers
        terms = [[term.read() for term in row] for row in layers]
        if not same_statistics([s.norm for row in terms for t in row for s in t.steps]):
            return "its normalisations differ in where they take their statistics"
        return terms

    def _inner(self) -> list[nn.Module]:
        """Return all modules but the branches', which are read on their own."""
        parts = [child for name, child in self.named_children() if name != "branches"]
        return [m for part in parts for m in part.modules()]

    def _find_layers(self) -> list[list[TermLayers]] | str:
        terms = _find_terms(self.fuse_layers)
        if isinstance(terms, str):
            return terms
        others = [child for name, child in self.named_children() if name not in ("branches", "fuse_layers")]
        for child in others:
            if type(child) not in (nn.ReLU, nn.Identity):
                return f"a {type(child).__name__} stands beside its fuse_layers"
        return hooked([*self.fuse_layers.modules(), *others]) or terms  # type: ignore[operator,union-attr]

    def _sizes(self, xs: Sequence[Tensor], terms: Sequence[Sequence[FusionTerm]]) -> str | None:
        """Say which map does not fit its target; branches keep the sizes of their inputs."""
        if len(xs) != len(self.branches):  # type: ignore[arg-type]
            return f"{len(xs)} maps for {len(self.branches)} branches"  # type: ignore[arg-type]
        for row in terms:
            for term in row:
                own, target = tuple(xs[term.source].shape[-2:]), tuple(xs[term.target].shape[-2:])
                made = [_size_after(n, k, term.steps) for k, n in enumerate(own)]
                if term.source > term.target:
                    if not self.fused_settings.exact_scale:
                        continue
                    made = [n << (term.source - term.target) for n in made]
                if made != list(target):
                    return f"a map of {own} does not fit one of {target}"
        return None


class TermLayers(NamedTuple):
    """The modules of a :class:`FusionTerm`: convolutions with their normalisations."""

    source: int
    target: int
    pairs: tuple[tuple[nn.Module, nn.Module], ...]

    def read(self) -> FusionTerm:
        return FusionTerm(self.source, self.target, Layers(self.pairs, None).read().steps)


def _find_terms(rows: Any) -> list[list[TermLayers]] | str:
    """Return the terms of ``fuse_layers``, row by row; or why the fusion cannot be stacked."""
    terms: list[list[TermLayers]] = []
    for r, row in enumerate(rows):
        found = [TermLayers(x, r, ()) if x == r else _find_term(layer, x, r) for x, layer in enumerate(row)]
        for term in found:
            if isinstance(term, str):
                return term
        terms.append(found)  # type: ignore[arg-type]
    return terms


def _find_term(layer: nn.Module, source: int, target: int) -> TermLayers | str:
    where = f"fuse_layers.{target}.{source}"
    layers = [m for m in flat(layer) if not isinstance(m, nn.Upsample)] if isinstance(layer, nn.Sequential) else []
    pairs = []
    while len(layers) >= 2:
        conv, norm = layers[:2]
        reason = unsupported.conv_norm(conv, norm)
        if reason:
            return f"{where}: {reason}"
        pairs.append((conv, norm))
        layers = layers[2:]
        if layers and type(layers[0]) is nn.ReLU:
            layers = layers[1:]
        elif layers:
            return f"{where}: {type(layers[0]).__name__} where a ReLU belongs"
    if layers or len(pairs) != max(1, target - source):
        return f"{where} is no chain of convolutions and normalisations"
    stride = (1, 1) if source > target else (2, 2)
    if any(conv.stride != stride for conv, _ in pairs):
        return f"{where} has convolutions of stride {[conv.stride for conv, _ in pairs]}"
    return TermLayers(source, target, tuple(pairs))


def _size_after(size: int, axis: int, steps: Sequence[ConvNorm]) -> int:
    """Height (axis 0) or width (axis 1) behind a row of convolutions."""
    for s in steps:
        covered = s.dilation[axis] * (s.weight.shape[2 + axis] - 1) + 1
        size = (size + 2 * s.padding[axis] - covered) // s.stride[axis] + 1
    return size
