"""``optimize_for_inference``: an engine from a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hrnet_fast.checks import check_bool, check_integer, check_module
from hrnet_fast.errors import InputError, shown
from hrnet_fast.inference.engine import Engine
from hrnet_fast.inference.normalize import checked_normalize
from hrnet_fast.inference.verification import verify_plan
from hrnet_fast.inference.weight_source import ModelSource

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def optimize_for_inference(
    model: nn.Module,
    example: Tensor,
    *,
    dtype: torch.dtype | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    max_shapes: int = 8,
    verify: bool = True,
) -> Engine:
    """Return an engine that computes what `model` computes, in fewer and larger steps.

    Takes any HRNet in evaluation mode: this package's, the authors', timm's, OpenMMLab's, accelerated or not, with any
    head. Operations other than convolutions, sums, resamplings and concatenations are called as the model calls them.

    Args:
        model: takes one [N, C, H, W] and returns tensors in lists, tuples or mappings. It is not changed; the engine
            reads its weights now and at :meth:`Engine.refresh`.
        example: an input. Its shape is prepared, and its device is the engine's. Other shapes are prepared at their
            first call.
        dtype: of the computation: float32, bfloat16, float16 or float64; None is the model's own. Outputs have the
            model's dtype. Sums inside a step are float32 at least.
        normalize: (mean, std) per channel, of values in 0 .. 1: the engine then takes images of bytes [N, H, W, C].
        max_shapes: number of input shapes that stay prepared; the least recently used is dropped first.
        verify: whether to compare the plan with the model on a small input, once.

    Raises:
        InputError: the model cannot be traced, is in training mode or has hooks; the example or the dtype does not fit.
        HRNetFastError: the plan's result differs from the model's.
    """
    if not isinstance(example, Tensor) or example.is_meta:
        given = "a tensor without data" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"optimize_for_inference: example is {given}; accepted is an input with data, [N, C, H, W].")
    check_module("optimize_for_inference", model)
    parameter = next(model.parameters(), None)
    outer = torch.float32 if parameter is None else parameter.dtype
    chosen = outer if dtype is None else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES:
        raise InputError(
            f"optimize_for_inference: dtype={shown(chosen)}; accepted are torch.float32, bfloat16, float16 and float64."
        )
    check_integer("optimize_for_inference", "max_shapes", max_shapes)
    check_bool("optimize_for_inference", verify=verify)
    images = checked_normalize(normalize)
    engine = Engine(ModelSource(model), chosen, outer, example.device, images, max_shapes)
    shape = engine.check(example)
    if verify:
        verify_plan(model, shape, outer)
    engine.prepare(shape)
    return engine
