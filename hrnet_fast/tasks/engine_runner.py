"""``EngineRunner``: runs a task's network by an inference engine."""

from __future__ import annotations

import logging
from typing import Any

import torch

from hrnet_fast.detection.detector import Detector
from hrnet_fast.errors import HRNetFastError
from hrnet_fast.inference import Engine, optimize_for_inference
from hrnet_fast.models import HRNet

logger = logging.getLogger(__name__)


class EngineRunner:
    """A :class:`Network` that prepares an engine at its first call; a detector gets engines in the place of its parts.

    Args:
        model: the network.
        dtype: dtype of the computation.
        or_model: run `model` itself, with a warning, if no engine can be made of it; otherwise raise the error.
    """

    def __init__(self, model: HRNet | Detector, dtype: torch.dtype, *, or_model: bool = False) -> None:
        self.config, self.family = model.config, model.family
        self.keypoints, self.assumptions = model.keypoints, model.assumptions
        self._model, self._dtype, self._or_model = model, dtype, or_model
        self._network: Engine | HRNet | Detector | None = None
        self._failed = False

    def __call__(self, x: Any) -> Any:
        if self._network is None:
            try:
                example = self._model.prepare(x)[0] if isinstance(self._model, Detector) else x
                self._network = optimize_for_inference(self._model, example, dtype=self._dtype)
            except HRNetFastError as error:
                if not self._or_model:
                    raise
                logger.warning("the model runs instead of an engine: %s", error)
                self._network, self._failed = self._model, True
        return self._network(x)

    def describe(self) -> str:
        """Return one line on what ran."""
        if self._failed:
            return "model, in place of an engine"
        kind = str(self._dtype).removeprefix("torch.")
        if not isinstance(self._network, Engine):
            return f"engine, {kind}"
        plan = self._network.plan()
        return f"engine, {kind}: {len(plan.steps)} steps in {len(plan.waves)} waves"
