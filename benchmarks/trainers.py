"""Contenders of the training benchmark: a step of a pose network, run in eager mode, checkpointed, compiled, or fused.

All have one loss and one optimizer, and begin with the same weights.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import hrnet_fast as hf
from hrnet_fast.reference.hrnet import HRNetReference
from hrnet_fast.reference.modularized_block import HighResolutionModule
from hrnet_fast.training.accelerate import MEMORY
from hrnet_fast.training.losses import KeypointMSELoss

CONVOLUTIONS = [torch.ops.aten.convolution.default]


@dataclass(frozen=True)
class Trainer:
    """One execution of a training step.

    Attributes:
        prepare: from a network of plain modules, which it may change, to what is called.
        layout: of the weights and images.
        slow: it compiles for minutes, and runs on request only.
        cuda_only: it has no effect on other devices.
    """

    prepare: Callable[[nn.Module], nn.Module]
    layout: torch.memory_format = torch.channels_last
    slow: bool = False
    cuda_only: bool = False

    def unavailable(self, device: str, asked: bool) -> str | None:
        """Return why it does not run, or None."""
        if self.cuda_only and device != "cuda":
            return f"not on {device}"
        if self.slow and not asked:
            return "compiles for minutes here: ask for it with --compile or --contenders"
        return None


def checkpointed(model: nn.Module, kept: list[Any] | None = None) -> nn.Module:
    """Run the stem, the first stage and every modularized block under ``torch.utils.checkpoint``.

    Args:
        kept: operators whose results are saved: selective checkpointing. None saves the parts' inputs alone.
    """
    assert isinstance(model, HRNetReference)
    options: dict[str, Any] = {"use_reentrant": False}
    if kept is not None:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept)
    model._stem = functools.partial(checkpoint, model._stem, **options)  # type: ignore[method-assign]
    first = model.get_submodule("layer1")
    for part in model.modules():
        if isinstance(part, HighResolutionModule) or part is first:
            part.forward = functools.partial(checkpoint, part.forward, **options)  # type: ignore[method-assign]
    return model


def _compiled(mode: str | None, model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, mode=mode, dynamic=False)  # type: ignore[return-value]


# The first is the baseline of errors and of ratios.
TRAINERS: dict[str, Trainer] = {
    "eager channels-last": Trainer(lambda model: model),
    "eager contiguous": Trainer(lambda model: model, torch.contiguous_format),
    "checkpoint": Trainer(checkpointed),
    "checkpoint selective": Trainer(functools.partial(checkpointed, kept=CONVOLUTIONS)),
    "compile": Trainer(functools.partial(_compiled, None), slow=True),
    "compile reduce-overhead": Trainer(functools.partial(_compiled, "reduce-overhead"), slow=True, cuda_only=True),
    **{f"hrnet_fast memory={m}": Trainer(functools.partial(hf.accelerate, memory=m)) for m in MEMORY},
}


class Step:
    """Forward, the authors' pose loss, backward and an optimizer's step; its rate is 0, so that all steps are equal.

    Args:
        trainer: how the network is run.
        model: a network of plain modules on the device, which the trainer may change.
        images: [N, 3, H, W]; dtype: of autocast; float32 and float64 are without it.
    """

    def __init__(self, trainer: Trainer, model: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
        model = model.train().to(memory_format=trainer.layout)  # type: ignore[call-overload]
        self.images = images.to(memory_format=trainer.layout)
        self.optimizer = torch.optim.SGD(model.parameters(), 0.0)
        self.parameters = list(model.parameters())
        self._autocast = {"dtype": dtype, "enabled": dtype.itemsize == 2}
        self._model, self._loss = trainer.prepare(model), KeypointMSELoss()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the loss and the heatmaps."""
        with torch.autocast(self.images.device.type, **self._autocast):
            heatmaps = self._model(self.images)
        return self._loss(heatmaps, torch.zeros_like(heatmaps)), heatmaps.detach()

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> list[Tensor]:
        loss, heatmaps = self.forward()
        self.backward(loss)
        return [heatmaps]  # not the loss: the error of one number may be small by chance


class StepMemory(NamedTuple):
    """Bytes above those before the step: alive when backward begins, and the most within forward and backward."""

    kept: int
    peak: int


def step_memory(step: Step) -> StepMemory:
    """Measure one step by its device's allocator.

    By the allocator, because not all that checkpointing and compiled code keep passes through autograd's saved tensors.
    """
    if step.images.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss, _ = step.forward()
        kept = torch.cuda.memory_allocated() - before
        step.backward(loss)
        torch.cuda.synchronize()
        return StepMemory(kept, torch.cuda.max_memory_allocated() - before)
    (loss, _), kept, most = _allocated(step.forward)
    _, _, more = _allocated(functools.partial(step.backward, loss))
    return StepMemory(kept, max(most, kept + more))


def _allocated(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """Return a call's result, and the change and the largest change of allocated bytes on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = call()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return result, live, most


def host_seconds(step: Step, rounds: int = 5) -> list[float]:
    """Return the seconds after which the host has queued a step on an idle CUDA device, per round.

    Where the device is much slower than the host, its queue fills and the host's time contains waits.
    """
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return found
