"""The primitives of ``bn_act`` in the compiled extension: see :mod:`hrnet_fast.ops.bn_act_primitives`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hrnet_fast import _C  # noqa: F401  (registers what torch.ops finds below)
from hrnet_fast.norm_affine import Norm

_ABSENT = torch.empty(0)


class CompiledBnAct:
    """The operators that the extension registers for ``"cpu"`` or ``"cuda"``."""

    def __init__(self, implementation: str) -> None:
        names = ("statistics", "batch_affine", "running_affine", "bn_act", "backward_sums", "backward_input")
        self._ops = {name: getattr(torch.ops.hrnet_fast, f"{name}_{implementation}") for name in names}

    def statistics(self, x: Tensor) -> Tensor:
        result: Tensor = self._ops["statistics"](x)
        return result

    def batch_affine(self, xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
        momenta, eps = [n.momentum for n in norms], [n.eps for n in norms]
        found: list[Tensor] = self._ops["batch_affine"](xs, *_columns(norms), momenta, eps)
        return found

    def running_affine(self, norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
        eps = [n.eps for n in norms]
        result: Tensor = self._ops["running_affine"](*_columns(norms), eps, dtype == torch.float64)
        return result

    def bn_act(
        self, x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
    ) -> Tensor:
        result: Tensor = self._ops["bn_act"](x, affine, residual, residual_affine, relu)
        return result

    def backward_sums(
        self, grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        sums, kept = self._ops["backward_sums"](grad, addend, x, affine, out, relu, keep)
        return sums, kept if keep else None

    def backward_input(self, grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
        result: Tensor = self._ops["backward_input"](grad, x, affine, sums, count, relu)
        return result


def _columns(norms: Sequence[Norm]) -> tuple[list[int], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return channels, weights, biases, means and variances; empty tensors for absent ones."""
    columns = zip(*[[_ABSENT if t is None else t for t in n[1:5]] for n in norms], strict=True)
    weights, biases, means, variances = map(list, columns)
    return [n.channels for n in norms], weights, biases, means, variances
