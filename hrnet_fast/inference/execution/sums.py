"""Sum steps on channels-last maps: ``fuse_sum``'s fast implementations where there are any, pointwise ones else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.implementations import select_implementation
from hrnet_fast.inference.steps import SumStep
from hrnet_fast.ops.fuse_sum import RESAMPLE


def fusible(step: SumStep, like: Tensor) -> bool:
    """Whether a fast ``fuse_sum`` takes this sum on maps like `like`: it resamples all terms alike."""
    return len(_modes(step)) <= 1 and select_implementation("fuse_sum", "auto", like) != "reference"


def copies(step: SumStep) -> bool:
    """Whether the sum is one map as it is."""
    return len(step.terms) == 1 and step.terms[0].mode == "identity" and not step.relu


def fused(step: SumStep, terms: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the sum [N, C, *size] in new memory."""
    mode, align_corners = next(iter(_modes(step)), ("nearest", False))
    return fuse(terms, None, size, mode, align_corners, step.relu)


def fuse(
    xs: Sequence[Tensor],
    affine: tuple[Tensor, Tensor] | None,
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    relu: bool,
) -> Tensor:
    """Return ``fuse_sum``'s result for maps that are channels-last, be they parts of others; `affine` is the first's.

    The operator itself would take such a part for a map of the other layout, and convert the result.
    """
    absent = xs[0].new_empty(0)
    scales, shifts = ([a, *[absent] * (len(xs) - 1)] for a in affine or (absent, absent))
    chosen, code = select_implementation("fuse_sum", "auto", xs[0]), RESAMPLE[mode, align_corners]
    if chosen == "triton":
        from hrnet_fast.kernels.triton.fuse_sum import forward

        return forward(xs, scales, shifts, size, code, relu, True)
    compiled = getattr(torch.ops.hrnet_fast, f"fuse_sum_{chosen}")
    out: Tensor = compiled(list(xs), scales, shifts, list(size), code, relu)
    return out


def add_up(step: SumStep, terms: Sequence[Tensor], size: tuple[int, int], target: Callable[[], Tensor]) -> None:
    """Write the sum to ``target()``, which may be where an identity term is."""
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
    """How the terms that are no identities are resampled; nearest knows no corners."""
    return {(t.mode, t.align_corners and t.mode == "bilinear") for t in step.terms if t.mode != "identity"}
