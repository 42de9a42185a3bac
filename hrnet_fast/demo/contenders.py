"""Executions of one network that are compared: eager PyTorch, ``accelerate`` and the inference engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from hrnet_fast.implementations import NAMES, describe, resolve
from hrnet_fast.inference import Engine, optimize_for_inference
from hrnet_fast.measure import Call
from hrnet_fast.training import accelerate, restore

# From a model in evaluation mode, an input and a dtype to a call. The model is float32 on the input's device; it may be
# changed.
Prepare = Callable[[Module, Tensor, torch.dtype], Call]


def eager(model: Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Execute the model as it is, with weights and input in `dtype`."""
    model, x = model.to(dtype), x.to(dtype)
    return torch.inference_mode()(lambda: model(x))


def channels_last(model: Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Execute the model with weights and input in `dtype`, channels-last."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return eager(model, x.contiguous(memory_format=torch.channels_last), dtype)


def autocast(model: Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Execute the model with float32 weights under autocast to `dtype`, channels-last."""
    call: Call = torch.autocast(x.device.type, dtype)(channels_last(model, x, torch.float32))
    return call


def engine(model: Module, x: Tensor, dtype: torch.dtype) -> Call:
    """Execute an inference engine of the model; :func:`engine_of` returns the engine of the call."""
    return functools.partial(optimize_for_inference(model, x, dtype=dtype), x)


def engine_of(call: Call | None) -> Engine | None:
    """Return the engine that a call of :func:`engine` executes, None for other calls."""
    found = call.func if isinstance(call, functools.partial) else None
    return found if isinstance(found, Engine) else None


@dataclass(frozen=True)
class Contender:
    """One execution of the demonstration.

    Attributes:
        name: short, for tables and charts.
        implementation: of the operators: "reference", that of ``impl="auto"``, or "engine".
        dtype: of the computation.
        prepare: makes the call.
    """

    name: str
    implementation: str
    dtype: torch.dtype
    prepare: Prepare


def contenders(device: torch.device) -> list[Contender]:
    """Return every execution that can run on `device`; the first is the baseline."""
    single, half = torch.float32, torch.bfloat16
    has_half = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found = [
        Contender("reference", "reference", single, _of(restore, eager)),
        Contender("reference, channels-last", "reference", single, _of(restore, channels_last)),
        Contender("reference, bf16 autocast", "reference", half, _of(restore, autocast)),
    ]
    if resolve() != "reference":  # else `accelerate` changes nothing
        found += [
            Contender("accelerated", resolve(), single, _of(accelerate, channels_last)),
            Contender("accelerated, bf16 autocast", resolve(), half, _of(accelerate, autocast)),
        ]
    found += [Contender("engine", "engine", single, engine), Contender("engine, bf16", "engine", half, engine)]
    return [c for c in found if has_half or c.dtype != half]


def _of(change: Callable[[Module], Module], prepare: Prepare) -> Prepare:
    return lambda model, x, dtype: prepare(change(model), x, dtype)


def unusable() -> dict[str, str]:
    """Return the implementations that cannot run here, with the reasons."""
    found = {name: describe(name) for name in NAMES}
    return {name: f.reason for name, f in found.items() if not f.usable}
