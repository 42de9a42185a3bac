"""A plan as a plain module: for ``torch.export``, ONNX, and whatever else takes modules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hrnet_fast.errors import InputError
from hrnet_fast.inference.arguments import as_calls_read_it, calls_read_input, fill_in, named_leaves, own_copy
from hrnet_fast.inference.execution.interpreter import compute
from hrnet_fast.inference.plan import Call, Export, Plan, View
from hrnet_fast.inference.storage import whole_file


class FoldedNetwork(nn.Module):
    """The network of a plan with its weights folded, in the plan's dtype, for inputs of the plan's shape.

    Takes what the engine takes and returns what it returns, in `result` (None: the plan's dtype, float32 at least),
    computed by PyTorch's operators without any in place.
    """

    def __init__(self, plan: Plan, tensors: Mapping[str, Tensor], result: torch.dtype | None = None) -> None:
        super().__init__()
        self.plan = plan
        self.outer = torch.promote_types(plan.dtype, torch.float32)  # of tensors that are no maps
        self.result = result or self.outer
        for k, spec in enumerate(plan.weights):
            weight, bias = spec.make(tensors)
            self.register_buffer(f"weight{k}", weight.to(plan.dtype, copy=True))
            self.register_buffer(f"bias{k}", bias.to(plan.dtype, copy=True))
        calls = [(step.args, step.kwargs) for step in plan.steps if isinstance(step, Call)]
        names = dict.fromkeys(leaf.name for leaf in named_leaves([*calls, plan.output]))
        self._names = {name: f"tensor{k}" for k, name in enumerate(names)}
        for name, buffer in self._names.items():
            self.register_buffer(buffer, own_copy(tensors[name], torch.device("cpu"), self.outer))
        self.eval()

    def example(self) -> Tensor:
        """Return an input of the shape and dtype that this network takes."""
        n, c, h, w = self.plan.input_shape
        images = any(getattr(step, "scale", None) is not None for step in self.plan.steps)
        return torch.zeros(n, h, w, c, dtype=torch.uint8) if images else torch.zeros(n, c, h, w, dtype=self.outer)

    def forward(self, x: Tensor) -> Any:
        plan = self.plan
        weights = [(getattr(self, f"weight{k}"), getattr(self, f"bias{k}")) for k in range(len(plan.weights))]
        named = {name: getattr(self, buffer) for name, buffer in self._names.items()}
        slots: list[Any] = [None] * plan.slots
        slots[0] = x
        given = as_calls_read_it(plan, x, self.outer) if calls_read_input(plan) else x
        parts: list[dict[int, Tensor]] = [{} for _ in plan.buffers]  # of each buffer, by channel offset

        def read(view: View) -> Tensor:
            found = []
            for offset, part in sorted(parts[view.buffer].items()):
                begin = max(view.offset - offset, 0)
                end = min(view.offset + view.channels - offset, part.shape[1])
                if begin < end:
                    found.append(part if end - begin == part.shape[1] else part[:, begin:end])
            return found[0] if len(found) == 1 else torch.cat(found, 1)

        for wave in plan.waves:
            made: list[tuple[View, Tensor]] = []
            for i in wave:
                step = plan.steps[i]
                if isinstance(step, Export):
                    slots[step.slot] = read(step.source).to(self.outer).contiguous()
                elif isinstance(step, Call):
                    args, kwargs = (
                        fill_in(part, [given, *slots[1:]], named, self.outer) for part in (step.args, step.kwargs)
                    )
                    slots[step.slot] = step.function(*args, **kwargs)
                else:
                    made.append((step.out, compute(plan, step, read, weights, slots, plan.dtype)))
            for view, tensor in made:
                if view.channels == plan.buffers[view.buffer].channels:
                    parts[view.buffer].clear()
                parts[view.buffer][view.offset] = tensor
        return tree_map(
            lambda t: t.to(self.result) if isinstance(t, Tensor) and t.is_floating_point() else t,
            fill_in(plan.output, [given, *slots[1:]], named, self.outer),
        )


def write_onnx(module: FoldedNetwork, path: str | os.PathLike[str]) -> None:
    """Write `module` as an ONNX file, whole or not at all.

    Raises:
        InputError: the packages that PyTorch's exporter needs are not installed.
    """
    try:
        with whole_file(path, "export_onnx") as unfinished:
            # The whole network in one file: weights beside it would be left behind when it is moved.
            torch.onnx.export(
                module, (module.example(),), unfinished, input_names=["image"], dynamo=True, external_data=False,
                verbose=False,
            )  # fmt: skip
    except ImportError as error:
        raise InputError(f"export_onnx: {error}; install onnx and onnxscript.") from error
