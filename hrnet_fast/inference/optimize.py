"""``optimize_for_inference``: an engine from a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from hrnet_fast.checks import check_bool, check_integer, check_module
from hrnet_fast.errors import InputError, shown
from hrnet_fast.inference.engine import Engine
from hrnet_fast.inference.engine_input import checked_normalize
from hrnet_fast.inference.engine_part import PartExecution, as_it_was, execute_by_engine
from hrnet_fast.inference.model_parts import PartCall, find_parts, takes_more_than_an_image
from hrnet_fast.inference.planning.tracer import InputShape
from hrnet_fast.inference.verification import verify_plan
from hrnet_fast.inference.weight_source import ModelSource
from hrnet_fast.training.accelerate import restore_parts

Model = TypeVar("Model", bound=nn.Module)
REFRESH = ("error", "auto", "never")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@overload
def optimize_for_inference(
    model: Model,
    example: Tensor,
    *,
    inplace: Literal[True],
    dtype: torch.dtype | None = ...,
    normalize: None = ...,
    max_shapes: int = ...,
    verify: bool = ...,
    refresh: str = ...,
) -> Model: ...
@overload
def optimize_for_inference(
    model: nn.Module,
    example: Tensor,
    *,
    inplace: Literal[False],
    dtype: torch.dtype | None = ...,
    normalize: tuple[Sequence[float], Sequence[float]] | None = ...,
    max_shapes: int = ...,
    verify: bool = ...,
    refresh: str = ...,
) -> Engine: ...
@overload
def optimize_for_inference(
    model: nn.Module,
    example: Tensor,
    *,
    inplace: None = ...,
    dtype: torch.dtype | None = ...,
    normalize: tuple[Sequence[float], Sequence[float]] | None = ...,
    max_shapes: int = ...,
    verify: bool = ...,
    refresh: str = ...,
) -> Any: ...
def optimize_for_inference(
    model: nn.Module,
    example: Tensor,
    *,
    dtype: torch.dtype | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    max_shapes: int = 8,
    verify: bool = True,
    refresh: str = "error",
    inplace: bool | None = None,
) -> Any:
    """Return an engine that computes what `model` computes, or `model` with engines in the place of its parts.

    Takes any HRNet in evaluation mode: this package's, the authors', timm's, OpenMMLab's, accelerated or not, with any
    head. Operations other than convolutions, sums, resamplings and concatenations are called as the model calls them.

    A model whose forward takes more than an image (OpenMMLab's ``(inputs, data_samples, mode)``) is returned itself:
    the largest parts around its HRNet that can be followed, of trunk, neck and heads, execute by engines, in place.
    Its own ``predict``, ``test_step`` and inferencers work on; class, ``isinstance``, parameters and state_dict stay.
    :func:`hrnet_fast.restore` undoes it, :func:`hrnet_fast.explain` lists the parts.

    Args:
        model: takes one [N, C, H, W] and returns tensors in lists, tuples or mappings. It is not changed; the engine
            reads its weights now and at :meth:`Engine.refresh`. With `inplace`, any module that contains an HRNet.
        example: an image batch [N, C, H, W] as the network takes it. Its shape is prepared, and its device is the
            engine's. Other shapes are prepared at their first call.
        dtype: of the computation: float32, bfloat16, float16 or float64; None is the model's own. Outputs have the
            model's dtype. Sums inside a step are float32 at least.
        normalize: (mean, std) per channel, of values in 0 .. 1: the engine then takes images of bytes [N, H, W, C].
        max_shapes: number of input shapes that stay prepared; the least recently used is dropped first.
        verify: whether to compare the plan with the model on a small input, once.
        refresh: what a call does after the model's weights changed: ``"error"`` raises InputError, ``"auto"`` reads
            them first, ``"never"`` computes with those that were read. Changes are noticed by tensors' identities,
            versions and addresses, so ``p.data.copy_(...)`` is not noticed.
        inplace: True returns `model` with engines in it, False an :class:`Engine`; None decides by its forward.

    Raises:
        InputError: the model cannot be traced, is in training mode or has hooks; the example, the dtype or another
            argument does not fit.
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
    if not isinstance(refresh, str) or refresh not in REFRESH:
        raise InputError(f"optimize_for_inference: refresh={shown(refresh)}; accepted are 'error', 'auto' and 'never'.")
    if inplace is None:
        inplace = takes_more_than_an_image(model)
    check_bool("optimize_for_inference", inplace=inplace)
    images = checked_normalize(normalize)
    settings = (chosen, outer, example.device, images, max_shapes, refresh)
    if not inplace:
        engine = Engine(ModelSource(model), *settings)
        shape = engine.check(example)
        try:
            _prepare(engine, model, shape, verify)
        except InputError as error:
            if error.__cause__ is None:  # about the arguments, and not what the model's forward raised
                raise
            hint = "With inplace=True, engines execute the largest parts around its HRNet that can be followed."
            raise InputError(f"{error} {hint}") from error
        return engine
    if images is not None:
        raise InputError("optimize_for_inference: normalize makes an engine for bytes; it needs inplace=False.")
    return _replace_parts(model, example, settings, verify)


def _prepare(engine: Engine, model: nn.Module, shape: InputShape, verify: bool) -> None:
    if verify:
        verify_plan(model, shape, engine.result_dtype)
    engine.prepare(shape)


def _replace_parts(model: nn.Module, example: Tensor, settings: tuple[Any, ...], verify: bool) -> nn.Module:
    """Let engines execute the parts of a model, in place: all of them, or none where one cannot be made."""
    restore_parts(model)
    if model.training:
        raise InputError(
            f"optimize_for_inference: {type(model).__name__} is in training mode; call model.eval() before."
        )
    if example.dim() != 4 or not example.is_floating_point():
        raise InputError(
            f"optimize_for_inference: example is {example.dtype} {list(example.shape)}; accepted is a floating image "
            "batch [N, C, H, W], as the network takes it."
        )
    modules, made = dict(model.named_modules()), []
    for part in find_parts(model, tuple(example.shape), settings[1]):
        module = modules[part.name]
        own = as_it_was(module)
        call = PartCall(own, part.signature)
        engine = Engine(ModelSource(call), *settings)
        _prepare(engine, call, part.shape, verify)
        made.append((module, PartExecution(own, part, engine)))
    for module, execution in made:
        execute_by_engine(module, execution)
    return model
