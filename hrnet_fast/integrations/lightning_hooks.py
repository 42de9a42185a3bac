"""The hooks of the callback for Lightning, under both names of its package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hrnet_fast.integrations.common import TrainerAcceleration
from hrnet_fast.training.accelerate import is_fusion


class LightningHooks:
    """Accelerates a LightningModule's HRNet before the strategy wraps it, and logs ``explain`` after the first step.

    Lightning's order is: ``setup``, ``configure_model``, the checkpoint, the strategy (SyncBN, device, wrapper), the
    start of the stage. A network that is there at ``setup`` is accelerated then, one that ``configure_model`` makes at
    the start of the stage. Weights may be loaded before or after.

    Args:
        options: keyword arguments of :func:`hrnet_fast.accelerate`, such as ``memory="min"``.

    Raises:
        TypeError: `accelerate` has no such option.
    """

    say: Callable[[str], None]  # Lightning's log, of one process

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._acceleration = TrainerAcceleration(options)
        self._started = False

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        self._started = False
        if any(is_fusion(module) for module in pl_module.modules()):
            self._start(trainer, pl_module)

    def _start(self, trainer: Any, pl_module: nn.Module) -> None:
        if not self._started:
            self._acceleration.start(pl_module)
            self._started = True

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _start

    def _report(self, trainer: Any, pl_module: nn.Module, *_args: Any, **_others: Any) -> None:
        report = self._acceleration.report(pl_module)
        if report is not None:
            self.say(f"accelerate: {report}")

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _report
