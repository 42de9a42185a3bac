"""The primitives of ``bn_act``: its passes over memory, without autograd and checks, in each implementation.

For callers that bring their own autograd: ``bn_act`` itself and fused training.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from hrnet_fast.implementations import select_implementation
from hrnet_fast.norm_affine import Norm

_MODULES = {
    "reference": "hrnet_fast.reference.bn_act",
    "triton": "hrnet_fast.kernels.triton.bn_act",
}


class BnActPrimitives(Protocol):
    """What the module of an implementation has.

    An affine is [4, C]: mean, invstd, scale and shift of a normalisation, of :func:`~hrnet_fast.norm_affine.math_dtype`
    (float32 in Triton). Maps are [N, C, H, W]; results have x's dtype and layout.
    """

    def statistics(self, x: Tensor) -> Tensor:
        """Return mean and biased variance over all but C, [2, C]."""

    def batch_affine(self, xs: Sequence[Tensor], norms: Sequence[Norm]) -> list[Tensor]:
        """Return the affine of each map's own statistics, and move the running ones.

        `norms` follow the channels of all maps in order.
        """

    def running_affine(self, norms: Sequence[Norm], dtype: torch.dtype) -> Tensor:
        """Return the affine of the running statistics: what evaluation and frozen statistics apply."""

    def bn_act(
        self, x: Tensor, affine: Tensor, residual: Tensor | None, relu: bool, residual_affine: Tensor | None = None
    ) -> Tensor:
        """Return act(scale * x + shift + residual), computed in the affine's dtype and rounded once.

        `residual_affine` normalises the residual as well: a shortcut with a convolution and normalisation.
        """

    def backward_sums(
        self, grad: Tensor, addend: Tensor | None, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of a normalisation's bias and weight, [2, C], and on request the masked gradient.

        With g = (grad + addend) where the activation was positive, else 0: the sums over all but C of g and of
        g * (x - mean) * invstd.

        Args:
            grad, addend: two parts of the gradient of the activation; the second may be None.
            x: the map that was normalised (a convolution's output).
            out: the activation, if it is at hand and was activated; its sign is the mask.
            relu: without `out`: whether ReLU followed; the mask is then recomputed from x and `affine`.
            keep: return g as well, in grad's dtype.
        """

    def backward_input(self, grad: Tensor, x: Tensor, affine: Tensor, sums: Tensor, count: float, relu: bool) -> Tensor:
        """Return the gradient of a normalisation's input.

        scale * (g - sums[0] / count - (x - mean) * invstd * sums[1] / count), where g is `grad`, masked as in
        :meth:`backward_sums` if `relu`. `count` is the number of values per channel over all processes; infinity for
        statistics that were given.
        """


@functools.cache
def load_bn_act(implementation: str) -> BnActPrimitives:
    """Return the primitives of an implementation that is known to run here."""
    if implementation in ("cpu", "cuda"):
        from hrnet_fast.ops.bn_act_compiled import CompiledBnAct

        return CompiledBnAct(implementation)
    return cast(BnActPrimitives, importlib.import_module(_MODULES[implementation]))


def bn_act_primitives(impl: str, tensor: Tensor) -> BnActPrimitives:
    """Return the primitives that `impl` means for a tensor's device and dtype.

    Raises:
        ImplementationError: a named implementation that cannot run here.
    """
    return load_bn_act(select_implementation("bn_act", impl, tensor))
