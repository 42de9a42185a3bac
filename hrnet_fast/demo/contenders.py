"""Ways of executing one network on this machine. A faster path joins the demonstration in :func:`contenders`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from hrnet_fast.implementations import NAMES, describe, resolve
from hrnet_fast.inference import optimize_for_inference
from hrnet_fast.models import HRNet
from hrnet_fast.training import accelerate, restore

Call = Callable[[], Any]


@dataclass(frozen=True)
class Ready:
    """A contender that can answer.

    Attributes:
        call: answers.
        launches, peak_bytes: steps of a call and bytes of its maps, where the contender knows them better than an
            onlooker: an engine's run unseen by PyTorch.
    """

    call: Call
    launches: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Contender:
    """One way of executing.

    Attributes:
        name: short, for tables and charts.
        implementation: which implementation computes it.
        dtype: what it computes in.
        prepare: takes the model and an image; the model is in evaluation mode, and is the contender's own to change.
    """

    name: str
    implementation: str
    dtype: str
    prepare: Callable[[HRNet, Tensor], Ready]


def _plain(model: HRNet, x: Tensor) -> Ready:
    restore(model)
    return Ready(lambda: model(x))


def _channels_last(model: HRNet, x: Tensor) -> Ready:
    return _in_channels_last(restore(model), x)


def _fused(model: HRNet, x: Tensor) -> Ready:
    return _in_channels_last(accelerate(model), x)


def _in_channels_last(model: Module, x: Tensor) -> Ready:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last)
    return Ready(lambda: model(x))


def _engine(dtype: torch.dtype) -> Callable[[HRNet, Tensor], Ready]:
    def prepared(model: HRNet, x: Tensor) -> Ready:
        engine = optimize_for_inference(model, x, dtype=dtype)
        return Ready(lambda: engine(x), engine.plan().launches(), engine.memory())

    return prepared


def _bfloat16(prepare: Callable[[HRNet, Tensor], Ready]) -> Callable[[HRNet, Tensor], Ready]:
    """`prepare`, under autocast."""

    def prepared(model: HRNet, x: Tensor) -> Ready:
        call = prepare(model, x).call

        def run() -> Any:
            with torch.autocast(x.device.type, torch.bfloat16):
                return call()

        return Ready(run)

    return prepared


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def contenders(device: torch.device) -> list[Contender]:
    """Return every way of executing that this machine has; the first is what the others are compared with."""
    found = [
        Contender("reference", "reference", "float32", _plain),
        Contender("reference, channels-last", "reference", "float32", _channels_last),
    ]
    half = _has_bfloat16(device)
    if half:
        found.append(Contender("reference, bf16 autocast", "reference", "bfloat16", _bfloat16(_channels_last)))
    chosen = resolve()
    if chosen != "reference":
        found.append(Contender("accelerated", chosen, "float32", _fused))
        if half:
            found.append(Contender("accelerated, bf16 autocast", chosen, "bfloat16", _bfloat16(_fused)))
    found.append(Contender("engine", "engine", "float32", _engine(torch.float32)))
    if half:
        found.append(Contender("engine, bf16", "engine", "bfloat16", _engine(torch.bfloat16)))
    return found


def absent() -> dict[str, str]:
    """Return the implementations that cannot run here, each with its reason, so that none is missing silently."""
    found = {name: describe(name) for name in NAMES}
    return {name: f.reason for name, f in found.items() if not f.usable}
