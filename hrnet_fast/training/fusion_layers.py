"""The modules of a fusion, recognised in ``fuse_layers`` by structure and read at every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.training import compiled, unsupported
from hrnet_fast.training.batch_norm import promotes, same_statistics, synchronised
from hrnet_fast.training.conv_norm import ConvNorm
from hrnet_fast.training.fusion_plan import FusionTerm
from hrnet_fast.training.matching import Layers, altered, flat

# Mode and align_corners of the interpolations that a fusion can have.
RESAMPLINGS = (("bilinear", False), ("bilinear", True), ("nearest", False))


class TermLayers(NamedTuple):
    """The modules of a :class:`FusionTerm`: convolutions with their normalisations.

    ``resampling`` is what a module behind them upsamples by (:data:`RESAMPLINGS`), or None where there is none.
    """

    source: int
    target: int
    pairs: tuple[tuple[nn.Module, nn.Module], ...]
    resampling: tuple[str, bool] | None = None

    def read(self) -> FusionTerm:
        return FusionTerm(self.source, self.target, Layers(self.pairs, None).read().steps)


class FusionLayers:
    """The modules of a fusion, and its compiled form where there is one.

    Args:
        rows: terms per target.
        mode, align_corners: of the upsampling.
    """

    def __init__(self, rows: Sequence[Sequence[TermLayers]], mode: str, align_corners: bool) -> None:
        self._rows = rows
        norms = [norm for row in rows for term in row for _, norm in term.pairs]
        self.promotes, self.synchronised = any(map(promotes, norms)), synchronised(norms)
        self.compiled = compiled.compile_fusion(rows, mode, align_corners)

    def read(self) -> FusionTerms:
        """Describe them as they stand at a call."""
        return FusionTerms([[term.read() for term in row] for row in self._rows])


class FusionTerms(NamedTuple):
    """The terms of a fusion at a call. The compiled extension's ``StackedFusionCall`` has the same methods."""

    terms: list[list[FusionTerm]]

    def _steps(self) -> list[ConvNorm]:
        return [step for row in self.terms for term in row for step in term.steps]

    def has_dtype_of(self, x: Tensor) -> bool:
        """Whether all weights have the dtype of `x`."""
        return all(step.weight.dtype == x.dtype for step in self._steps())

    def alike(self) -> bool:
        """Whether all normalisations take the same statistics."""
        return same_statistics([step.norm for step in self._steps()])

    def misfit(self, sizes: Sequence[tuple[int, int]], exact: bool) -> tuple[int, int] | None:
        """Return the first term (source, target) whose map does not fit its target, by the branches' (H, W).

        Coarser maps must fit by a power of two only if `exact`.
        """
        for term in (term for row in self.terms for term in row):
            if term.source > term.target and not exact:
                continue
            factor = max(0, term.source - term.target)
            made = tuple(_size_after(n, axis, term.steps) << factor for axis, n in enumerate(sizes[term.source]))
            if made != tuple(sizes[term.target]):
                return term.source, term.target
        return None


def _size_after(size: int, axis: int, steps: Sequence[ConvNorm]) -> int:
    """Return the height (axis 0) or width (axis 1) behind a row of convolutions."""
    for s in steps:
        covered = s.dilation[axis] * (s.weight.shape[2 + axis] - 1) + 1
        size = (size + 2 * s.padding[axis] - covered) // s.stride[axis] + 1
    return size


def find_terms(rows: Any) -> list[list[TermLayers]] | str:
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
    layers = list(flat(layer)) if isinstance(layer, nn.Sequential) else []
    pairs, resampling = [], None
    if source > target and len(layers) > 2:
        reason = altered(layers[-1:])
        if reason:
            return f"{where}: {reason}"
        resampling = _read_resampling(layers[-1], 1 << (source - target))
        layers = layers[:-1] if resampling else layers
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
            what = "an interpolation to the target's size" if source > target else "a ReLU"
            return f"{where}: {type(layers[0]).__name__} where {what} belongs"
    if layers or len(pairs) != max(1, target - source):
        return f"{where} is no chain of convolutions and normalisations"
    stride = (1, 1) if source > target else (2, 2)
    if any(conv.stride != stride for conv, _ in pairs):
        return f"{where} has convolutions of stride {[conv.stride for conv, _ in pairs]}"
    return TermLayers(source, target, tuple(pairs), resampling)


def _read_resampling(module: nn.Module, factor: int) -> tuple[str, bool] | None:
    """Return the mode and align_corners of a module that upsamples by `factor`, by what it computes; or None."""
    if next(iter(module.state_dict()), None) is not None:
        return None
    x = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0), device="cpu")
    state = torch.random.get_rng_state()
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            given = module(x.clone())
    except Exception:  # whatever a foreign forward raises
        return None
    finally:
        torch.random.set_rng_state(state)
    for mode, align in RESAMPLINGS:
        wanted = F.interpolate(x, scale_factor=factor, mode=mode, align_corners=align if mode == "bilinear" else None)
        if isinstance(given, Tensor) and given.shape == wanted.shape and torch.allclose(given, wanted, atol=1e-6):
            return mode, align
    return None


def resampling_of(terms: Sequence[Sequence[TermLayers]]) -> set[tuple[str, bool]]:
    """Return how the modules of a fusion upsample; empty where its forward does it."""
    return {term.resampling for row in terms for term in row if term.resampling is not None}
