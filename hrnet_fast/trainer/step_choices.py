"""Which fast paths a run takes: fused modules, the memory format, the step as a CUDA graph; and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hrnet_fast.detection import Detector
from hrnet_fast.errors import ConfigError, InputError
from hrnet_fast.implementations import BY_DEVICE, request, select_implementation
from hrnet_fast.recipes.recipe import LoopRecipe
from hrnet_fast.training import accelerate, restore
from hrnet_fast.training.accelerate import is_fusion
from hrnet_fast.training.training_iteration import Arguments

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}  # None: without it


@dataclass(frozen=True)
class StepChoices:
    """What a run does, and the reason of each choice by its field's name.

    Attributes:
        accelerate: :func:`hrnet_fast.accelerate` with the recipe's `memory`; otherwise plain modules.
        channels_last: memory format of weights and images.
        graph: :class:`hrnet_fast.training.GraphedStep`; otherwise each step is launched operator by operator.
        reasons: one line for each of these.
    """

    accelerate: bool
    channels_last: bool
    graph: bool
    reasons: Mapping[str, str]


def choose(loop: LoopRecipe, model: nn.Module, device: torch.device, processes: int) -> StepChoices:
    """Decide by the recipe, and where that says ``"auto"``, by a rule:

    - ``accelerate``: where the model is an HRNet and this machine has kernels for the device. On CPUs steps take about
      as long as plain ones at usual sizes, less at small ones, and keep about half of the memory for backward; on CUDA
      devices this is not measured.
    - ``channels_last`` (None): on CPUs, where it is quicker with plain and fused modules alike; on CUDA devices under
      autocast, whose convolutions use it.
    - ``graph``: on a CUDA device with one process, and without deterministic algorithms, some of which a capture
      refuses; not for detectors, whose shapes depend on their data.

    Raises:
        ConfigError: the recipe asks for what cannot be had here.
    """
    fused, fused_reason = _accelerate(loop, model, device)
    graph, graph_reason = _graph(loop, model, device, processes)
    if loop.channels_last is not None:
        last, last_reason = loop.channels_last, "the recipe says so"
    elif device.type == "cuda":
        last, last_reason = loop.dtype != "float32", f"a CUDA device, {loop.dtype}"
    else:
        last, last_reason = device.type == "cpu", f"the device is {device.type}"
    reasons = {"accelerate": fused_reason, "channels_last": last_reason, "graph": graph_reason}
    return StepChoices(fused, last, graph, reasons)


def _accelerate(loop: LoopRecipe, model: nn.Module, device: torch.device) -> tuple[bool, str]:
    if loop.accelerate == "off":
        return False, "the recipe says so"
    if not any(map(is_fusion, model.modules())):
        reason = f"{type(model).__name__} has no module of an HRNet"
    else:
        asked = request("auto")
        found = asked.name if asked.from_environment else select_implementation("bn_act", "auto", _empty(device))
        if loop.accelerate == "on":
            return True, f"the recipe says so; the implementation is {found}"
        if found != "reference":
            return True, f"the implementation for {device.type} is {found}"
        names = " or ".join(BY_DEVICE.get(device.type, ())) or "no implementation"
        reason = str(asked) if asked.from_environment else f"{device.type} has no kernels here ({names} is needed)"
    if loop.accelerate == "on":
        raise ConfigError(f"loop.accelerate='on': {reason}; accepted are 'auto' and 'off' here.")
    return False, reason


def _empty(device: torch.device) -> torch.Tensor:
    return torch.empty(0, device=device)


def _graph(loop: LoopRecipe, model: nn.Module, device: torch.device, processes: int) -> tuple[bool, str]:
    if loop.graph == "off":
        return False, "the recipe says so"
    if isinstance(model, Detector):
        reason = "shapes in a detector depend on its data"
        if loop.graph == "on":
            raise ConfigError(f"loop.graph='on': {reason}, so its step is no graph; accepted are 'auto' and 'off'.")
        return False, reason
    if device.type != "cuda":
        if loop.graph == "on":
            raise ConfigError(
                f"loop.graph='on': the device is {device.type}, and CUDA graphs need a CUDA device; accepted are "
                "'auto' and 'off' here."
            )
        return False, f"the device is {device.type}"
    if loop.graph == "on":
        return True, "the recipe says so"
    if processes > 1:
        return False, f"there are {processes} processes; loop.graph='on' captures with several too"
    if loop.deterministic:
        return False, "captures refuse some deterministic algorithms"
    return True, "a CUDA device"


def prepare_model(model: nn.Module, choices: StepChoices, loop: LoopRecipe, device: torch.device) -> nn.Module:
    """Move a model to the device, in its memory format, with fused or plain modules, in training mode.

    Raises:
        ConfigError: the recipe asks for fused modules, which this model cannot have.
    """
    model = model.to(device)
    if choices.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if choices.accelerate:
        try:
            accelerate(model, memory=loop.memory)
        except InputError as error:
            raise ConfigError(f"loop.accelerate={loop.accelerate!r}: {error}") from error
    else:
        restore(model)
    return model.train()


def in_format(images: Any, choices: StepChoices) -> Any:
    """Return images, or arguments that begin with them, in the memory format of the weights."""
    if isinstance(images, Arguments):
        return Arguments((in_format(images[0], choices), *images[1:]))
    return images.contiguous(memory_format=torch.channels_last) if choices.channels_last else images
