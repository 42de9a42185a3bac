"""Hugging Face: the callback ``AccelerateHRNet`` for ``transformers.Trainer``."""

from __future__ import annotations

from typing import Any

from torch import nn

from hrnet_fast.integrations.common import TrainerAcceleration, missing_package

try:
    from transformers import TrainerCallback
    from transformers.utils.logging import get_logger
except ModuleNotFoundError as error:
    raise missing_package(__name__, "transformers", error) from error

_logger = get_logger("transformers.hrnet_fast")  # below their own, whose verbosity users set


class AccelerateHRNet(TrainerCallback):  # type: ignore[misc]
    """Accelerates the trainer's model before it is wrapped, and logs ``explain`` after the first step.

    The trainer calls it when it is made, and when training starts, where ``model_init`` has made another model. The
    report is a warning if a block did not take the fused path, otherwise information.

    Args:
        options: keyword arguments of :func:`hrnet_fast.accelerate`, such as ``memory="min"``.

    Raises:
        TypeError: `accelerate` has no such option.
    """

    def __init__(self, **options: Any) -> None:
        self._acceleration = TrainerAcceleration(options)

    def on_init_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_others: Any) -> None:
        self._acceleration.start(model)

    on_train_begin = on_init_end

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_others: Any) -> None:
        report = self._acceleration.report(model)
        if report is not None and state.is_world_process_zero:
            log = _logger.info if report.fast == len(report.blocks) else _logger.warning
            log(f"accelerate: {report}")

    on_prediction_step = on_step_end
