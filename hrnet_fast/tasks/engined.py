"""A network's answers by an engine, for the tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hrnet_fast.inference import Engine, optimize_for_inference
from hrnet_fast.models import HRNet


class Engined:
    """Answers as `model` does, by an engine that is made at the first call."""

    def __init__(self, model: HRNet, dtype: torch.dtype) -> None:
        self.config, self.family = model.config, model.family
        self.engine: Engine | None = None
        self._model, self._dtype = model, dtype

    def __call__(self, x: Tensor) -> Any:
        if self.engine is None:
            self.engine = optimize_for_inference(self._model, x, dtype=self._dtype)
        return self.engine(x)

    def describe(self) -> str:
        """Say what ran, in one line."""
        kind = str(self._dtype).removeprefix("torch.")
        if self.engine is None:
            return f"engine, {kind}"
        plan = self.engine.plan()
        return f"engine, {kind}: {len(plan.steps)} steps in {len(plan.waves)} waves"
