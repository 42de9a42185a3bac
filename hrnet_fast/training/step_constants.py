"""What the graphs of a training step have as constants, and whether it is still so."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hrnet_fast.training.captured_optimizer import changed_hyperparameter, has_hooks, hyperparameters, optimizer_refusal
from hrnet_fast.training.model_state import ModelState
from hrnet_fast.training.training_iteration import TrainingIteration


class StepConstants:
    """The state of a step's model, loss, optimizer, scaler and average, to compare at each call.

    Attributes:
        model: of the model, and of the loss if that is a module.
    """

    def __init__(self, iteration: TrainingIteration) -> None:
        self._iteration = iteration
        self.model = ModelState(m for m in (iteration.model, iteration.loss) if isinstance(m, nn.Module))
        optimizer = iteration.optimizer
        if optimizer is not None:
            self._hyperparameters = hyperparameters(optimizer)
            self._state, self._hooked = optimizer.state, has_hooks(optimizer)
        self._scaler = _scaler_numbers(iteration.scaler)
        self._average = self._average_memory()

    def change(self) -> str | None:
        """Name what changed, or None."""
        optimizer = self._iteration.optimizer
        if optimizer is not None:
            now = hyperparameters(optimizer)
            if not _equal(now, self._hyperparameters):
                return f"{changed_hyperparameter(now, self._hyperparameters)} changed"
            if optimizer.state is not self._state:
                return "the optimizer's state was loaded anew"
            if has_hooks(optimizer) != self._hooked:
                return "the optimizer's hooks changed"
        if _scaler_numbers(self._iteration.scaler) != self._scaler:
            return "the scaler's settings changed"
        if self._average_memory() != self._average:
            return "the averaged model has other memory"
        return self.model.change()

    def accept_numbers(self) -> bool:
        """Take the modules' numbers as they are now. Return whether nothing else changed."""
        return self.model.accept_numbers() and self.change() is None

    def _average_memory(self) -> Any:
        average = self._iteration.average
        if average is None:
            return None
        tensor = next(average.average.module.parameters())
        return tensor.data_ptr(), average.average.n_averaged.device


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except RuntimeError:  # other tensors
        return False


def _scaler_numbers(scaler: Any) -> Any:
    if scaler is None:
        return None
    factors = scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()
    return *factors, scaler.is_enabled(), id(scaler._scale)


def lasting_refusal(iteration: TrainingIteration, device: torch.device) -> str | None:
    """Say why no call of a step can be captured as the step stands, and what to change, or None."""
    optimizer, average = iteration.optimizer, iteration.average
    if isinstance(iteration.model, nn.DataParallel):
        return "DataParallel runs on several devices; use DistributedDataParallel"
    if any(p.device != device for p in iteration.parameters):
        return "parameters are on several devices"
    if any(isinstance(m, torch.jit.ScriptModule) for m in iteration.model.modules()):
        return "the model has scripted modules, whose attributes cannot be compared"
    if optimizer is not None:
        reason = optimizer_refusal(optimizer)
        if reason is not None:
            return reason
        scaled = iteration.scaler is not None and iteration.scaler.is_enabled()
        if scaled and not getattr(optimizer, "_step_supports_amp_scaling", False):
            name = type(optimizer).__name__
            return f"a GradScaler reads on the host whether {name} may step; make {name} with fused=True"
    return None if average is None else average.refusal(device)
