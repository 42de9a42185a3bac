"""Recipes of a plan's weights: convolutions of the model, where they stand in a weight, and folding in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormNames:
    """A batch normalisation in evaluation mode, by the names of its tensors."""

    mean: str
    var: str
    weight: str | None
    bias: str | None
    eps: float


@dataclass(frozen=True)
class Source:
    """A convolution of the model and the normalisations after it; `begin`, `end` select input channels."""

    weight: str
    bias: str | None
    norms: tuple[NormNames, ...] = ()
    begin: int = 0
    end: int | None = None
    with_bias: bool = True

    def normalised(self, norm: NormNames) -> Source:
        return replace(self, norms=(*self.norms, norm))


@dataclass(frozen=True)
class Piece:
    """Where a source's weight stands in a larger one."""

    source: Source
    out_offset: int
    in_offset: int


@dataclass(frozen=True)
class WeightSpec:
    """A weight [out, in, k, k] and its bias [out], assembled from pieces; biases of one output add up."""

    shape: tuple[int, int, int, int]
    pieces: tuple[Piece, ...]

    def make(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return weight and bias in float64 on the device of the first convolution's weight."""
        device = tensors[self.pieces[0].source.weight].device
        if len(self.pieces) == 1 and self.pieces[0].source.end is None:
            return _fold(self.pieces[0].source, tensors, device)
        weight = torch.zeros(self.shape, dtype=torch.float64, device=device)
        bias = torch.zeros(self.shape[0], dtype=torch.float64, device=device)
        for piece in self.pieces:
            w, b = _fold(piece.source, tensors, device)
            w = w[:, piece.source.begin : piece.source.end]
            o, i = piece.out_offset, piece.in_offset
            weight[o : o + w.shape[0], i : i + w.shape[1]] += w
            if piece.source.with_bias:
                bias[o : o + w.shape[0]] += b
        return weight, bias


def _fold(source: Source, tensors: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the convolution's weight and bias with its normalisations folded in, in float64."""

    def read(name: str) -> Tensor:
        return tensors[name].detach().to(device, torch.float64)

    weight = read(source.weight)
    bias = read(source.bias) if source.bias else weight.new_zeros(weight.shape[0])
    for norm in source.norms:
        scale = (read(norm.var) + norm.eps).rsqrt()
        if norm.weight:
            scale = scale * read(norm.weight)
        shift = -read(norm.mean) * scale
        if norm.bias:
            shift = shift + read(norm.bias)
        weight = weight * scale[:, None, None, None]
        bias = bias * scale + shift
    return weight, bias
