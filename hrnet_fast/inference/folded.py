"""A plan as a module with folded weights, for ``torch.export``, ONNX and other consumers of modules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.errors import InputError
from hrnet_fast.inference.engine_file import whole_file
from hrnet_fast.inference.execution.evaluator import PlanEvaluator, ResizeRule, to_planned_size
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.slots import copy_state


class FoldedNetwork(nn.Module):
    """The network of a plan, computed by PyTorch's operators out of place.

    Args:
        plan: gives the dtype of maps and, except where `resize` frees it, the input's shape.
        tensors: the model's parameters and buffers by name; the module keeps folded copies.
        result: dtype of outputs; None is the plan's, float32 at least.
        resize: how terms of a sum are brought to its size.
        device: of the copies; None is the CPU.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        result: torch.dtype | None = None,
        resize: ResizeRule = to_planned_size,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        device = device or torch.device("cpu")
        wide = torch.promote_types(plan.dtype, torch.float32)
        self.plan, self.result, self._resize = plan, result or wide, resize
        for k, spec in enumerate(plan.weights):
            weight, bias = spec.make(tensors)
            self.register_buffer(f"weight{k}", weight.to(device, plan.dtype, copy=True))
            self.register_buffer(f"bias{k}", bias.to(device, plan.dtype, copy=True))
        state = copy_state(plan, tensors, device, wide)
        self._names = {name: f"tensor{k}" for k, name in enumerate(state)}  # names of tensors may hold dots
        for name, tensor in state.items():
            self.register_buffer(self._names[name], tensor)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        """Return the network's output for `x`, floating [N, C, H, W] or, for plans of images, bytes [N, H, W, C]."""
        weights = [(getattr(self, f"weight{k}"), getattr(self, f"bias{k}")) for k in range(len(self.plan.weights))]
        state = {name: getattr(self, buffer) for name, buffer in self._names.items()}
        return PlanEvaluator(self.plan, weights, state, self.result, self._resize)(x)


def write_onnx(
    module: FoldedNetwork | torch.export.ExportedProgram,
    path: str | os.PathLike[str],
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a network as an ONNX file, completely or not at all.

    Args:
        module: a folded network, for inputs of its plan's shape; or an exported program.
        path: of the file.
        names: of the program's dynamic dimensions.

    Raises:
        InputError: the packages that PyTorch's exporter needs are not installed.
    """
    args = (module.plan.example_input(),) if isinstance(module, FoldedNetwork) else ()
    try:
        with whole_file(path, "export_onnx") as unfinished:
            # One file: weights in a second one are easily lost when the file is moved.
            torch.onnx.export(
                module, args, unfinished, input_names=["image"], dynamo=True, external_data=False, verbose=False,
                dynamic_shapes=(dict(names),) if names else None,
            )  # fmt: skip
    except ImportError as error:
        raise InputError(f"export_onnx: {error}; install onnx and onnxscript.") from error
