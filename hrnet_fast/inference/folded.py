"""A plan as a plain module: for ``torch.export``, ONNX, and whatever else takes modules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hrnet_fast.errors import InputError
from hrnet_fast.inference.arguments import as_calls_read_it, calls_read_input, fill_in, named_leaves, own_copy
from hrnet_fast.inference.engine_file import whole_file
from hrnet_fast.inference.execution.evaluator import Resizing, compute
from hrnet_fast.inference.plan import CallStep, ExportStep, Plan, SumStep, SumTerm, View

Resample = Literal["literal", "target", "factor"]
Size = tuple[int, int]


class FoldedNetwork(nn.Module):
    """The network of a plan with its weights folded, in the plan's dtype, for inputs of the plan's shape.

    `resample` frees the size: maps come to a sum's size as it is in the plan (``"literal"``), to the present size of
    the map that has this size in the plan (``"target"``), or by the plan's factor, if an integer (``"factor"``).

    Takes what the engine takes and returns what it returns, in `result` (None: the plan's dtype, float32 at least),
    computed by PyTorch's operators without any in place.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        result: torch.dtype | None = None,
        resample: Resample = "literal",
    ) -> None:
        super().__init__()
        self.plan, self.resample = plan, resample
        self.outer = torch.promote_types(plan.dtype, torch.float32)  # of tensors that are no maps
        self.result = result or self.outer
        for k, spec in enumerate(plan.weights):
            weight, bias = spec.make(tensors)
            self.register_buffer(f"weight{k}", weight.to(plan.dtype, copy=True))
            self.register_buffer(f"bias{k}", bias.to(plan.dtype, copy=True))
        calls = [(step.args, step.kwargs) for step in plan.steps if isinstance(step, CallStep)]
        names = dict.fromkeys(leaf.name for leaf in named_leaves([*calls, plan.output]))
        self._names = {name: f"tensor{k}" for k, name in enumerate(names)}
        for name, buffer in self._names.items():
            self.register_buffer(buffer, own_copy(tensors[name], torch.device("cpu"), self.outer))
        self.eval()

    def example(self) -> Tensor:
        """Return an input of the shape and dtype that this network takes."""
        n, c, h, w = self.plan.input_shape
        images = self.takes_images
        return torch.zeros(n, h, w, c, dtype=torch.uint8) if images else torch.zeros(n, c, h, w, dtype=self.outer)

    @property
    def takes_images(self) -> bool:
        """Whether it takes bytes [N, H, W, C]."""
        return any(getattr(step, "scale", None) is not None for step in self.plan.steps)

    def _resizing(self, step: Any, present: Mapping[Size, Size]) -> Resizing | None:
        """How a sum's terms come to its size; None as the plan has it."""
        if self.resample == "literal" or not isinstance(step, SumStep):
            return None
        size = self.plan.shape(step.out)[2:]

        def resizing(term: SumTerm) -> dict[str, Any]:
            own = self.plan.shape(term.source)[2:]
            factor = size[0] // own[0]
            if self.resample == "factor" and size == (factor * own[0], factor * own[1]):
                return {"scale_factor": float(factor)}
            if size not in present:
                raise InputError(f"a map is brought to {size[0]}x{size[1]}, which no map before it has.")
            return {"size": present[size]}

        return resizing

    def forward(self, x: Tensor) -> Any:
        plan = self.plan
        weights = [(getattr(self, f"weight{k}"), getattr(self, f"bias{k}")) for k in range(len(plan.weights))]
        named = {name: getattr(self, buffer) for name, buffer in self._names.items()}
        slots: list[Any] = [None] * plan.slots
        slots[0] = x
        given = as_calls_read_it(plan, x, self.outer) if calls_read_input(plan) else x
        parts: list[dict[int, Tensor]] = [{} for _ in plan.buffers]  # of each buffer, by channel offset
        present: dict[tuple[int, int], Size] = {}  # sizes of maps as they are, by their sizes in the plan

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
                if isinstance(step, ExportStep):
                    slots[step.slot] = read(step.source).to(self.outer).contiguous()
                elif isinstance(step, CallStep):
                    args, kwargs = (
                        fill_in(part, [given, *slots[1:]], named, self.outer) for part in (step.args, step.kwargs)
                    )
                    slots[step.slot] = step.function(*args, **kwargs)
                else:
                    resized = self._resizing(step, present)
                    made.append((step.out, compute(plan, step, read, weights, slots, plan.dtype, resized)))
            for view, tensor in made:
                if view.channels == plan.buffers[view.buffer].channels:
                    parts[view.buffer].clear()
                parts[view.buffer][view.offset] = tensor
                present.setdefault(plan.shape(view)[2:], (tensor.shape[2], tensor.shape[3]))
        return tree_map(
            lambda t: t.to(self.result) if isinstance(t, Tensor) and t.is_floating_point() else t,
            fill_in(plan.output, [given, *slots[1:]], named, self.outer),
        )


def write_onnx(
    module: FoldedNetwork | torch.export.ExportedProgram,
    path: str | os.PathLike[str],
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a folded network as an ONNX file, whole or not at all.

    Args:
        module: for inputs of its plan's shape; or an exported program, whose free dimensions `names` names.
        path: of the file.
        names: of free dimensions of the input.

    Raises:
        InputError: the packages that PyTorch's exporter needs are not installed.
    """
    args = (module.example(),) if isinstance(module, FoldedNetwork) else ()
    try:
        with whole_file(path, "export_onnx") as unfinished:
            # The whole network in one file: weights beside it would be left behind when it is moved.
            torch.onnx.export(
                module, args, unfinished, input_names=["image"], dynamo=True, external_data=False, verbose=False,
                dynamic_shapes=(dict(names),) if names else None,
            )  # fmt: skip
    except ImportError as error:
        raise InputError(f"export_onnx: {error}; install onnx and onnxscript.") from error
