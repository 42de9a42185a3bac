"""Plans in plain PyTorch, step by step: the oracle of every executor, and what runs where none does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from hrnet_fast.inference.arguments import as_calls_read_it, calls_read_input, fill_in, named_leaves, own_copy
from hrnet_fast.inference.plan import (
    CallStep,
    ConvStep,
    ExportStep,
    ImportStep,
    Plan,
    PoolStep,
    Step,
    SumStep,
    SumTerm,
    View,
)
from hrnet_fast.ops.primitives import wrong_in_bfloat16


def interpret(plan: Plan, tensors: Mapping[str, Tensor], x: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return what `plan` computes on `x`, with maps of `dtype` (the plan's, if None) on the device of `x`.

    Args:
        plan: for inputs of the shape of `x`.
        tensors: the model's parameters and buffers by name.
        x: [N, C, H, W].
    """
    return Interpreter(plan, tensors, dtype or plan.dtype, x.device)(x)


class Interpreter:
    """Holds a plan's weights in `dtype` on `device`; a call carries the plan out. Outputs have the dtype `result`."""

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        result: torch.dtype | None = None,
    ) -> None:
        self.plan, self.dtype, self.device = plan, dtype, device
        self._calls_read_input = calls_read_input(plan)
        self.outer = torch.promote_types(dtype, torch.float32)  # of tensors that are no maps
        self.result = result or self.outer
        made = [spec.make(tensors) for spec in plan.weights]
        self.weights = [(own_copy(w, device, dtype), own_copy(b, device, dtype)) for w, b in made]
        self.named = {
            leaf.name: own_copy(tensors[leaf.name], device, self.outer)
            for leaf in named_leaves(
                [*((s.args, s.kwargs) for s in plan.steps if isinstance(s, CallStep)), plan.output]
            )
        }

    def __call__(self, x: Tensor, times: list[tuple[int, float]] | None = None) -> Any:
        """Return the network's output; `times` collects (step, seconds)."""
        buffers: list[Tensor | None] = [None] * len(self.plan.buffers)
        slots: list[Any] = [None] * self.plan.slots
        slots[0] = x
        # Whatever is called or returned sees the input as the model does; imports read what was given.
        read = as_calls_read_it(self.plan, x, self.outer) if self._calls_read_input else x
        last = _last_uses(self.plan)
        with torch.no_grad():
            for k, wave in enumerate(self.plan.waves):
                for i in wave:
                    start = time.perf_counter()
                    self._run(self.plan.steps[i], buffers, slots, read)
                    if times is not None:
                        times.append((i, time.perf_counter() - start))
                for buffer in last.get(k, ()):
                    buffers[buffer] = None
        return tree_map(
            lambda t: t.to(self.result) if isinstance(t, Tensor) and t.is_floating_point() else t,
            fill_in(self.plan.output, [read, *slots[1:]], self.named, self.outer),
        )

    def _run(self, step: Step, buffers: list[Tensor | None], slots: list[Any], given: Tensor) -> None:
        def read(view: View) -> Tensor:
            buffer = buffers[view.buffer]
            assert buffer is not None
            return buffer[:, view.offset : view.offset + view.channels]

        if isinstance(step, ExportStep):
            slots[step.slot] = read(step.source).to(self.outer, copy=True, memory_format=torch.contiguous_format)
        elif isinstance(step, CallStep):
            args, kwargs = (
                fill_in(part, [given, *slots[1:]], self.named, self.outer) for part in (step.args, step.kwargs)
            )
            slots[step.slot] = step.function(*args, **kwargs)
        else:
            result = compute(self.plan, step, read, self.weights, slots, self.dtype)
            size = self.plan.buffers[step.out.buffer]
            if buffers[step.out.buffer] is None:
                buffers[step.out.buffer] = torch.empty(
                    (size.n, size.channels, size.height, size.width), dtype=self.dtype, device=self.device
                ).to(memory_format=torch.channels_last)
            out = read(step.out)
            assert out.shape == result.shape  # copy_ would broadcast
            out.copy_(result)


Resizing = Callable[[SumTerm], dict[str, Any]]


def compute(
    plan: Plan,
    step: ImportStep | ConvStep | SumStep | PoolStep,
    read: Callable[[View], Tensor],
    weights: Sequence[tuple[Tensor, Tensor]],
    slots: Sequence[Any],
    dtype: torch.dtype,
    resizing: Resizing | None = None,
) -> Tensor:
    """Return the map [N, C, H, W] that a step makes.

    `resizing` gives the arguments by which a sum's term is interpolated; None is to the size in the plan.
    """
    if isinstance(step, ImportStep):
        given: Tensor = slots[step.slot]
        if step.scale is not None:
            wide = torch.promote_types(dtype, torch.float32)
            scale, shift = (torch.tensor(v, dtype=wide, device=given.device) for v in (step.scale, step.shift))
            given = (given.to(wide) * scale + shift).permute(0, 3, 1, 2)
        return given.to(dtype)
    if isinstance(step, PoolStep):
        return F.avg_pool2d(read(step.source), step.size, step.size)
    if isinstance(step, ConvStep):
        x, (weight, bias) = read(step.source), weights[step.weight]
        if wrong_in_bfloat16(x, step.kernel, step.stride):
            out = F.conv2d(x.float(), weight.float(), bias.float(), step.stride, step.kernel // 2).to(x.dtype)
        else:
            out = F.conv2d(x, weight, bias, step.stride, step.kernel // 2)
        if step.residual is not None:
            out = out + read(step.residual)
        begin, end = step.relu
        if (begin, end) == (0, out.shape[1]):
            return out.relu()
        return torch.cat([out[:, :begin], out[:, begin:end].relu(), out[:, end:]], 1) if begin < end else out
    size = plan.shape(step.out)[2:]
    total: Tensor | None = None
    for term in step.terms:
        x = read(term.source)
        if term.mode != "identity":
            align = term.align_corners if term.mode == "bilinear" else None
            how = resizing(term) if resizing else {"size": size}
            x = F.interpolate(x, mode=term.mode, align_corners=align, **how)
        total = x if total is None else total + x
    assert total is not None
    return total.relu() if step.relu else total


def _last_uses(plan: Plan) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for k, buffer in enumerate(plan.buffers):
        found.setdefault(buffer.last, []).append(k)
    return found
