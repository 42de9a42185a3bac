"""Sources of an engine's plans and weights: a model or a file."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hrnet_fast.errors import InputError
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.planning.tracer import InputShape
from hrnet_fast.inference.weight_versions import WeightVersions
from hrnet_fast.keypoints.methods import named_method


class ModelSource:
    """A model, whose present weights are read and whose plans are made on demand."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = list(model.modules())

    def has_other_modules(self) -> bool:
        """Whether a module was added, removed or replaced since the last call."""
        before, self._modules = self._modules, list(self.model.modules())
        return len(before) != len(self._modules) or any(map(operator.is_not, before, self._modules))

    @property
    def keypoints(self) -> str | None:
        return named_method(self.model)

    def plan(self, shape: InputShape, dtype: torch.dtype) -> Plan:
        return make_plan(self.model, shape, dtype)

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def versions(self) -> WeightVersions | None:
        """Return the present versions of the model's tensors."""
        return WeightVersions(self.model)


class FileSource:
    """The content of a file, with plans for some input shapes."""

    def __init__(
        self, plans: Mapping[tuple[int, ...], Plan], tensors: Mapping[str, Tensor], keypoints: str | None
    ) -> None:
        self.plans, self._tensors, self.keypoints = dict(plans), dict(tensors), keypoints

    def plan(self, shape: tuple[int, ...], dtype: torch.dtype) -> Plan:
        if shape not in self.plans:
            known = ", ".join(str(list(s)) for s in self.plans)
            raise InputError(
                f"Engine: input of shape {list(shape)} given; this engine was loaded from a file that holds {known}. "
                "Save it with the shapes you need: engine.save(path, shapes=[...])."
            )
        return self.plans[shape]

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def versions(self) -> WeightVersions | None:
        """Return None: a file's weights are read once."""
        return None
