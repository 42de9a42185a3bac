"""Checks of the arguments of ``GraphedStep`` that describe what a step computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel

from hrnet_fast.checks import check_integer, check_module, check_number
from hrnet_fast.errors import InputError, shown

DTYPES = (None, torch.float32, torch.bfloat16, torch.float16)


def check_arguments(
    model: Any, loss: Any, optimizer: Any, dtype: Any, accumulate: Any, clip_norm: Any, scaler: Any, ema: Any,
    stream: Any,
) -> nn.Parameter:  # fmt: skip
    """Return the model's first parameter.

    Raises:
        InputError: an argument of another kind, or arguments that exclude each other.
    """
    what = "GraphedStep"
    check_module(what, model)
    if not callable(loss):
        raise InputError(f"{what}: loss={shown(loss)}; accepted is a function loss(outputs, targets).")
    if dtype not in DTYPES:
        raise InputError(f"{what}: dtype={shown(dtype)}; accepted are None, torch.bfloat16 and torch.float16.")
    for name, value, kind in (
        ("optimizer", optimizer, optim.Optimizer),
        ("scaler", scaler, torch.amp.GradScaler),
        ("ema", ema, AveragedModel),
        ("stream", stream, torch.cuda.Stream),
    ):
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{what}: {name}={shown(value)}; accepted is a {kind.__name__} of torch, or None.")
    if clip_norm is not None:
        check_number(what, "clip_norm", clip_norm)
    check_integer(what, "accumulate", accumulate)
    if optimizer is None and dtype == torch.float16 and scaler is None:
        raise InputError(f"{what}: float16 without an optimizer needs scaler=, a torch.amp.GradScaler that you step.")
    if optimizer is None and (ema is not None or (clip_norm is not None and scaler is not None)):
        raise InputError(
            f"{what}: without an optimizer there is no update: ema, and clip_norm with a scaler, need one."
        )
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise InputError(f"{what}: {type(model).__name__} has no parameters to train.")
    return parameter  # type: ignore[no-any-return]
