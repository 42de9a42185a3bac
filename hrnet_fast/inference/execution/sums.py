"""Sum steps on channels-last maps: by ``fuse_sum`` where it has a fast implementation, else by pointwise operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.implementations import select_implementation
from hrnet_fast.inference.steps import SumStep
from hrnet_fast.ops.primitives import fuse_sum_forward


def sum_implementation(dtype: torch.dtype, device: torch.device) -> str:
    """Return the implementation of ``fuse_sum`` that an executor's sums run; the environment is read now."""
    return select_implementation("fuse_sum", "auto", torch.empty(0, dtype=dtype, device=device))


def fusible(step: SumStep, implementation: str) -> bool:
    """Whether ``fuse_sum`` computes this sum, and fast: it resamples all terms in one mode."""
    return len(_modes(step)) <= 1 and implementation != "reference"


def copies(step: SumStep) -> bool:
    """Whether the sum is one map as it is."""
    return len(step.terms) == 1 and step.terms[0].mode == "identity" and not step.relu


def fused(step: SumStep, terms: Sequence[Tensor], size: tuple[int, int], implementation: str) -> Tensor:
    """Return the sum [N, C, *size] in new memory."""
    mode, align_corners = next(iter(_modes(step)), ("nearest", False))
    return fuse(terms, None, size, mode, align_corners, step.relu, implementation)


def fuse(
    xs: Sequence[Tensor],
    affine: tuple[Tensor, Tensor] | None,
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    relu: bool,
    impl: str = "auto",
) -> Tensor:
    """Return ``fuse_sum`` of the maps; `affine` is the first one's."""
    absent = xs[0].new_empty(0)
    scales, shifts = ([a, *[absent] * (len(xs) - 1)] for a in affine or (absent, absent))
    return fuse_sum_forward(xs, scales, shifts, size, mode, align_corners, relu, impl)


def add_up(step: SumStep, terms: Sequence[Tensor], size: tuple[int, int], target: Callable[[], Tensor]) -> None:
    """Write the sum to ``target()``, which may be the memory of an identity term."""
    whole: list[Tensor] = []
    for term, x in zip(step.terms, terms, strict=True):
        if term.mode == "identity":
            whole.append(x)
            continue
        align_corners = term.align_corners if term.mode == "bilinear" else None
        whole.append(F.interpolate(x, size=size, mode=term.mode, align_corners=align_corners))
    total = whole[0]
    for x in whole[1:-1]:
        total = total + x
    out = target()
    if len(whole) > 1:
        torch.add(total, whole[-1], out=out)
        if step.relu:
            out.relu_()
    elif step.relu:
        torch.clamp_min(total, 0, out=out)
    else:
        out.copy_(total)


def _modes(step: SumStep) -> set[tuple[str, bool]]:
    """Return how the terms that are no identities are resampled; nearest has no corners to align."""
    return {(t.mode, t.align_corners and t.mode == "bilinear") for t in step.terms if t.mode != "identity"}
