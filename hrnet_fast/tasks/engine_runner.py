"""``EngineRunner``: runs a task's network by an inference engine."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.errors import HRNetFastError
from hrnet_fast.inference import Engine, optimize_for_inference
from hrnet_fast.models import HRNet

logger = logging.getLogger(__name__)


class EngineRunner:
    """A :class:`Network` that prepares an engine at its first call.

    Args:
        model: the network.
        dtype: dtype of the computation.
        or_model: run `model` itself, with a warning, if no engine can be made of it; otherwise raise the error.
    """

    def __init__(self, model: HRNet, dtype: torch.dtype, *, or_model: bool = False) -> None:
        self.config, self.family = model.config, model.family
        self.keypoints, self.assumptions = model.keypoints, model.assumptions
        self._model, self._dtype, self._or_model = model, dtype, or_model
        self._network: Engine | HRNet | None = None

    def __call__(self, x: Tensor) -> Any:
        if self._network is None:
            try:
                self._network = optimize_for_inference(self._model, x, dtype=self._dtype)
            except HRNetFastError as error:
                if not self._or_model:
                    raise
                logger.warning("the model runs instead of an engine: %s", error)
                self._network = self._model
        return self._network(x)

    def describe(self) -> str:
        """Return one line on what ran."""
        if self._network is self._model:
            return "model, in place of an engine"
        kind = str(self._dtype).removeprefix("torch.")
        if not isinstance(self._network, Engine):
            return f"engine, {kind}"
        plan = self._network.plan()
        return f"engine, {kind}: {len(plan.steps)} steps in {len(plan.waves)} waves"
