"""The functional evaluator of plans: the oracle of every executor, the exported module, and steps without a tactic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.errors import InputError
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.slots import Slots, copy_state, device_of, normalization_tensors, own_copy
from hrnet_fast.inference.steps import ConvStep, ExportStep, ImportStep, PoolStep, SumStep, SumTerm, View
from hrnet_fast.ops.primitives import wrong_in_bfloat16

Size = tuple[int, int]


class Maps(Protocol):
    """How steps read and write views."""

    def __getitem__(self, view: View) -> Tensor:
        """Return [n, view.channels, height, width]."""

    def put(self, view: View, result: Tensor) -> None:
        """Write a result, of which the view may keep the memory."""

    def write(self, view: View, source: Tensor) -> None:
        """Write a copy of `source`, in the dtype of the maps."""


class Operators(Protocol):
    """Convolutions and sums, which executors compute in different ways."""

    def convolve(self, number: int, step: ConvStep) -> None:
        """Compute a convolution step and write its result."""

    def add(self, step: SumStep) -> None:
        """Compute a sum step and write its result."""


def run_step(plan: Plan, number: int, maps: Maps, slots: Slots, operators: Operators) -> None:
    """Run one step of a plan: read views and slots, compute, and write the result."""
    step = plan.steps[number]
    if isinstance(step, ConvStep):
        operators.convolve(number, step)
    elif isinstance(step, SumStep):
        operators.add(step)
    elif isinstance(step, PoolStep):
        maps.put(step.out, F.avg_pool2d(maps[step.source], step.size, step.size))
    elif isinstance(step, ImportStep):
        maps.write(step.out, slots[step.slot] if step.scale is None else slots.network_input())
    elif isinstance(step, ExportStep):
        source = maps[step.source]
        slots[step.slot] = source.to(slots.dtype, copy=True, memory_format=torch.contiguous_format)
    else:
        slots.call(step)


class FunctionalMaps:
    """Views as the tensors that were written, by buffer and channel offset. Nothing is written in place.

    Attributes:
        sizes: present (height, width) of maps by their size in the plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.sizes: dict[Size, Size] = {}
        self._plan = plan
        self._parts: list[dict[int, Tensor]] = [{} for _ in plan.buffers]

    def __getitem__(self, view: View) -> Tensor:
        found = []
        for offset, part in sorted(self._parts[view.buffer].items()):
            begin = max(view.offset - offset, 0)
            end = min(view.offset + view.channels - offset, part.shape[1])
            if begin < end:
                found.append(part if end - begin == part.shape[1] else part[:, begin:end])
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def put(self, view: View, result: Tensor) -> None:
        parts = self._parts[view.buffer]
        if view.channels == self._plan.buffers[view.buffer].channels:
            parts.clear()
        parts[view.offset] = result.to(self._plan.dtype)
        self.sizes.setdefault(self._plan.shape(view)[2:], (result.shape[2], result.shape[3]))

    write = put

    def end_wave(self, wave: int) -> None:
        """Drop buffers whose lifetime ends with a wave."""
        for parts, buffer in zip(self._parts, self._plan.buffers, strict=True):
            if buffer.last == wave:
                parts.clear()


# Returns the arguments by which ``interpolate`` brings a term to the size of its sum.
ResizeRule = Callable[[Plan, SumStep, SumTerm, FunctionalMaps], dict[str, Any]]


def to_planned_size(plan: Plan, step: SumStep, term: SumTerm, maps: FunctionalMaps) -> dict[str, Any]:
    """Resize to the size that the plan has, a constant."""
    return {"size": plan.shape(step.out)[2:]}


def to_present_size(plan: Plan, step: SumStep, term: SumTerm, maps: FunctionalMaps) -> dict[str, Any]:
    """Resize to the present size of the map that has the sum's size in the plan.

    Raises:
        InputError: there is no such map.
    """
    size = plan.shape(step.out)[2:]
    if size not in maps.sizes:
        raise InputError(f"a map is brought to {size[0]}x{size[1]}, which no map before it has.")
    return {"size": maps.sizes[size]}


def by_planned_factor(plan: Plan, step: SumStep, term: SumTerm, maps: FunctionalMaps) -> dict[str, Any]:
    """Resize by the factor between the sizes in the plan; as :func:`to_present_size` where it is no integer."""
    size, own = plan.shape(step.out)[2:], plan.shape(term.source)[2:]
    factor = size[0] // own[0]
    if size == (factor * own[0], factor * own[1]):
        return {"scale_factor": float(factor)}
    return to_present_size(plan, step, term, maps)


class PlanEvaluator:
    """Evaluates a plan with PyTorch's operators, out of place.

    Args:
        plan: the plan; its dtype is that of the maps.
        weights: (weight, bias) of each of the plan's weights, in that dtype.
        state: tensors that calls read, by name.
        result: dtype of outputs; None is the maps', float32 at least.
        resize: how terms of a sum are brought to its size.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[tuple[Tensor, Tensor]],
        state: Mapping[str, Tensor],
        result: torch.dtype | None = None,
        resize: ResizeRule = to_planned_size,
    ) -> None:
        self._plan, self._weights, self._state, self._resize = plan, weights, state, resize
        self._dtype = torch.promote_types(plan.dtype, torch.float32)  # of tensors outside the buffers
        self._result = result or self._dtype
        self._maps = FunctionalMaps(plan)

    def __call__(self, x: Tensor | tuple[Tensor, ...]) -> Any:
        """Return the network's output for `x`, floating [N, C, H, W] or, for plans of images, bytes [N, H, W, C]."""
        plan, maps = self._plan, FunctionalMaps(self._plan)
        slots = Slots(plan, x, self._state, self._dtype, normalization_tensors(plan, device_of(x), self._dtype))
        self._maps = maps
        for k, wave in enumerate(plan.waves):
            for number in wave:
                run_step(plan, number, maps, slots, self)
            maps.end_wave(k)
        return slots.output(self._result)

    def convolve(self, number: int, step: ConvStep) -> None:
        x, (weight, bias) = self._maps[step.source], self._weights[step.weight]
        if wrong_in_bfloat16(x, step.kernel, step.stride):
            out = F.conv2d(x.float(), weight.float(), bias.float(), step.stride, step.kernel // 2).to(x.dtype)
        else:
            out = F.conv2d(x, weight, bias, step.stride, step.kernel // 2)
        if step.residual is not None:
            out = out + self._maps[step.residual]
        begin, end = step.relu
        if (begin, end) == (0, out.shape[1]):
            out = out.relu()
        elif begin < end:
            out = torch.cat([out[:, :begin], out[:, begin:end].relu(), out[:, end:]], 1)
        self._maps.put(step.out, out)

    def add(self, step: SumStep) -> None:
        terms = []
        for term in step.terms:
            x = self._maps[term.source]
            if term.mode != "identity":
                align_corners = term.align_corners if term.mode == "bilinear" else None
                size = self._resize(self._plan, step, term, self._maps)
                x = F.interpolate(x, mode=term.mode, align_corners=align_corners, **size)
            terms.append(x)
        total = terms[0]
        for x in terms[1:]:
            total = total + x
        self._maps.put(step.out, total.relu() if step.relu else total)


def evaluate(
    plan: Plan, tensors: Mapping[str, Tensor], x: Tensor | tuple[Tensor, ...], dtype: torch.dtype | None = None
) -> Any:
    """Return what `plan` computes on `x`, with maps of `dtype` (None: the plan's) on the device of `x`.

    Args:
        plan: for inputs of the shape of `x`.
        tensors: the model's parameters and buffers by name.
        x: floating [N, C, H, W], or bytes [N, H, W, C] for plans of images; or several floating inputs.
    """
    device = device_of(x)
    plan = replace(plan, dtype=dtype or plan.dtype)
    made = [spec.make(tensors) for spec in plan.weights]
    weights = [(own_copy(w, device, plan.dtype), own_copy(b, device, plan.dtype)) for w, b in made]
    state = copy_state(plan, tensors, device, torch.promote_types(plan.dtype, torch.float32))
    with torch.no_grad():
        return PlanEvaluator(plan, weights, state)(x)
