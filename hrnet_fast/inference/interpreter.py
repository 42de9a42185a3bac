"""Plans in plain PyTorch, step by step: the oracle of every executor, and what runs where none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.inference.plan import Call, Conv, Export, Import, Plan, Pool, Slot, Step, Sum, View
from hrnet_fast.inference.recording import Named


def interpret(plan: Plan, tensors: Mapping[str, Tensor], x: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return what `plan` computes on `x`, with maps of `dtype` (the plan's, if None) on the device of `x`.

    Args:
        plan: for inputs of the shape of `x`.
        tensors: the model's parameters and buffers by name.
        x: [N, C, H, W].
    """
    return Interpreter(plan, tensors, dtype or plan.dtype, x.device)(x)


class Interpreter:
    """Holds a plan's weights in `dtype` on `device`; a call carries the plan out."""

    def __init__(self, plan: Plan, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.plan, self.dtype, self.device = plan, dtype, device
        self.outer = torch.promote_types(dtype, torch.float32)  # of tensors that are no maps
        made = [spec.make(tensors) for spec in plan.weights]
        self.weights = [(w.to(device, dtype), b.to(device, dtype)) for w, b in made]
        self.named = {
            leaf.name: tensors[leaf.name].detach().to(device, self.outer)
            for step in plan.steps
            if isinstance(step, Call)
            for leaf in _named((step.args, step.kwargs))
        }

    def __call__(self, x: Tensor) -> Any:
        buffers: list[Tensor | None] = [None] * len(self.plan.buffers)
        slots: list[Any] = [None] * self.plan.slots
        slots[0] = x
        last = _last_uses(self.plan)
        with torch.no_grad():
            for k, wave in enumerate(self.plan.waves):
                for i in wave:
                    self._run(self.plan.steps[i], buffers, slots)
                for buffer in last.get(k, ()):
                    buffers[buffer] = None
        return _swap(self.plan.output, slots, self.named)

    def _run(self, step: Step, buffers: list[Tensor | None], slots: list[Any]) -> None:
        def read(view: View) -> Tensor:
            buffer = buffers[view.buffer]
            assert buffer is not None
            return buffer[:, view.offset : view.offset + view.channels]

        if isinstance(step, Export):
            slots[step.slot] = read(step.source).to(self.outer, copy=True)
        elif isinstance(step, Call):
            slots[step.slot] = step.function(
                *_swap(step.args, slots, self.named), **_swap(step.kwargs, slots, self.named)
            )
        else:
            result = self._compute(step, read, slots)
            size = self.plan.buffers[step.out.buffer]
            if buffers[step.out.buffer] is None:
                buffers[step.out.buffer] = torch.empty(
                    (size.n, size.channels, size.height, size.width), dtype=self.dtype, device=self.device
                ).to(memory_format=torch.channels_last)
            read(step.out).copy_(result)

    def _compute(self, step: Import | Conv | Sum | Pool, read: Any, slots: list[Any]) -> Tensor:
        if isinstance(step, Import):
            given: Tensor = slots[step.slot]
            return given.to(self.dtype)
        if isinstance(step, Pool):
            return F.avg_pool2d(read(step.source), step.size, step.size)
        if isinstance(step, Conv):
            weight, bias = self.weights[step.weight]
            out = F.conv2d(read(step.source), weight, bias, step.stride, step.kernel // 2)
            if step.residual is not None:
                out = out + read(step.residual)
            begin, end = step.relu
            if end > begin:
                out[:, begin:end] = out[:, begin:end].relu()
            return out
        size = self.plan.shape(step.out)[2:]
        total: Tensor | None = None
        for term in step.terms:
            x = read(term.source)
            if term.mode != "identity":
                align = term.align_corners if term.mode == "bilinear" else None
                x = F.interpolate(x, size=size, mode=term.mode, align_corners=align)
            total = x if total is None else total + x
        assert total is not None
        return total.relu() if step.relu else total


def _last_uses(plan: Plan) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for k, buffer in enumerate(plan.buffers):
        found.setdefault(buffer.last, []).append(k)
    return found


def _named(tree: Any) -> list[Named]:
    if isinstance(tree, Named):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in _named(part)] if isinstance(tree, (list, tuple)) else []


def _swap(tree: Any, slots: list[Any], named: Mapping[str, Tensor]) -> Any:
    """Put tensors in place of their slots and names."""
    if isinstance(tree, Slot):
        return slots[tree.index]
    if isinstance(tree, Named):
        return named[tree.name]
    if isinstance(tree, dict):
        return type(tree)({k: _swap(v, slots, named) for k, v in tree.items()})
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        parts = [_swap(v, slots, named) for v in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree
