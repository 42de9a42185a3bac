"""Chains, fusions and heads of the compiled extension: nodes of autograd's graph in C++, one each (csrc/training).

They compute what :mod:`~hrnet_fast.training.residual_chain`, :mod:`~hrnet_fast.training.stacked_fusion` and
:mod:`~hrnet_fast.training.v2_head` compute, operator by operator. Those run without the extension, with Triton and with
shared statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hrnet_fast.implementations import OperatorImplementations
from hrnet_fast.ops.primitives import RESAMPLE, load_compiled
from hrnet_fast.training.batch_norm import share_statistics

Pair = tuple[nn.Module, nn.Module]  # a convolution and its normalisation


def has_compiled_passes(operators: OperatorImplementations, synchronised: Sequence[nn.Module] = ()) -> bool:
    """Whether these implementations are the extension's own, which its chains, fusions and heads call.

    Statistics of several processes are found in Python: not with one of these `synchronised` layers in training.
    """
    if synchronised and share_statistics(synchronised):
        return False
    return operators.bn_act == operators.fuse_sum and operators.bn_act in ("cpu", "cuda")


def compile_chain(units: Sequence[tuple[Sequence[Pair], Pair | bool | None]]) -> Any | None:
    """Return a ``ResidualChain`` of supported units (layers, shortcut), or None where there is no extension."""
    extension = load_compiled()
    if extension is None:
        return None
    described = []
    for layers, shortcut in units:
        own = [_layer(pair) for pair in (*layers, *([shortcut] if isinstance(shortcut, tuple) else []))]
        described.append((own, 1 if isinstance(shortcut, tuple) else -1 if shortcut else 0))
    return extension.ResidualChain(described)


def compile_fusion(
    rows: Sequence[Sequence[tuple[int, int, Sequence[Pair], Any]]], mode: str, align_corners: bool
) -> Any | None:
    """Return a ``StackedFusion``, or None where there is no extension.

    Args:
        rows: terms (source, target, layers, the layers' own upsampling) per target.
    """
    extension = load_compiled()
    if extension is None:
        return None
    sources = 1 + max(source for row in rows for source, *_ in row)
    described = [[(source, target, [_layer(p) for p in layers]) for source, target, layers, _ in row] for row in rows]
    return extension.StackedFusion(described, sources, RESAMPLE[mode, align_corners])


def compile_v2_head(mix: Pair, classifier: nn.Module, align_corners: bool) -> Any | None:
    """Return a ``V2Head`` of a 1x1 convolution with its normalisation and of the classifier, or None as above."""
    extension = load_compiled()
    if extension is None:
        return None
    return extension.V2Head(_layer(mix), classifier, RESAMPLE["bilinear", align_corners])


def _layer(pair: Pair) -> tuple[nn.Module, nn.Module, bool]:
    return *pair, not isinstance(pair[1], nn.modules.batchnorm._BatchNorm)


def read_joined(chains: Sequence[Any]) -> Any | None:
    """Return ``ResidualChain`` objects as they stand as one ``ResidualChainsCall``, whose passes share launches.

    None where two of them share a layer, whose running statistics then move one after the other.
    """
    return load_compiled().ResidualChain.read_joined(list(chains))  # type: ignore[union-attr]


def run_chains(call: Any, xs: Sequence[Tensor], memory: str) -> list[Tensor] | str:
    """Run each chain of a ``ResidualChainsCall`` on its input, or say why it cannot; differentiable once."""
    found: list[Tensor] | str = call.run(list(xs), memory)
    return found


def run_fusion(call: Any, xs: Sequence[Tensor]) -> list[Tensor]:
    """Return every target, [N, C_r, H_r, W_r], of a ``StackedFusionCall``; differentiable once."""
    targets: list[Tensor] = call.run(list(xs))
    return targets


def run_v2_head(call: Any, xs: Sequence[Tensor]) -> Tensor:
    """Return the classifier's [N, K, H, W] of a ``V2HeadCall``; differentiable once."""
    found: Tensor = call.run(list(xs))
    return found
