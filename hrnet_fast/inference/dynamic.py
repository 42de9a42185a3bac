"""Exports with a dynamic batch or size, compared with plans of other shapes before they are returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hrnet_fast.errors import HRNetFastError, InputError, shown
from hrnet_fast.inference.execution.evaluator import ResizeRule, by_planned_factor, to_planned_size, to_present_size
from hrnet_fast.inference.folded import FoldedNetwork
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import CallStep

AXES = ("batch", "height", "width")
Shape = tuple[int, ...]
PlanFor = Callable[[Shape], Plan]
DynamicProgram = tuple[torch.export.ExportedProgram, dict[int, str]]  # and names of axes, by the input's dimension
_TOLERANCE = 2e-5  # relative: the same steps at other shapes differ by rounding, 1e-6
# A dynamic size is exported at the first, where no map has a side of 1, which the exporter takes as a constant. It is
# compared at the other two: a multiple of 32, and odd numbers.
_LARGE, _EVEN, _ODD = (256, 256), (128, 160), (137, 161)


def checked_axes(dynamic: Any) -> tuple[str, ...]:
    """Return the axes that `dynamic` names, in order; ``"size"`` is height and width.

    Raises:
        InputError: no list or tuple, or another name.
    """
    if not isinstance(dynamic, (list, tuple)) or any(axis not in (*AXES, "size") for axis in dynamic):
        raise InputError(
            f"export: dynamic={shown(dynamic)}; accepted is a tuple of 'batch', 'height', 'width' and 'size' (both)."
        )
    named = {*dynamic} | ({"height", "width"} if "size" in dynamic else set())
    return tuple(axis for axis in AXES if axis in named)


def export_dynamic(
    plan: Plan,
    plan_for: PlanFor,
    saved: Sequence[Shape] | None,
    tensors: Mapping[str, Tensor],
    result: torch.dtype,
    axes: tuple[str, ...],
) -> DynamicProgram:
    """Return the exported program of a network whose `axes` are dynamic, and their names by the input's dimension.

    For dynamic sizes, maps are first resampled to each other's sizes, which allows every size. If the program then
    differs from the plans, as with networks that upsample by factors, maps are resampled by factors, which fails at
    sizes that are no multiples of the smallest map's stride. Every program is compared with plans of other shapes.

    Args:
        plan: the program's plan.
        plan_for: returns the plan of another shape.
        saved: the shapes that `plan_for` accepts, or None for all.
        tensors, result: of :class:`FoldedNetwork`.
        axes: some of :data:`AXES`.

    Raises:
        InputError: the network does not allow it; the message says why.
    """
    sized = [axis for axis in axes if axis != "batch"]
    reasons: list[str] = []
    if sized and saved is None:
        plan = plan_for(_with_size(plan, axes, _LARGE))
    names = _dimensions(plan, axes)
    for resize in (to_present_size, by_planned_factor) if sized else (to_planned_size,):
        try:
            others = [_wide(plan_for(shape)) for shape in _trials(plan, axes, resize, saved)]
            module = FoldedNetwork(_wide(plan), tensors, resize=resize)
            program = _exported(module, names)
            # Saved plans have one batch size: a larger batch is compared part by part.
            batches = 3 if saved is not None and "batch" in axes else 1
            for other in others:
                _compare(program, FoldedNetwork(other, tensors), batches)
            if (plan.dtype, result) != (module.plan.dtype, module.result):
                program = _exported(FoldedNetwork(plan, tensors, result, resize), names)
            return program, names
        except HRNetFastError as error:
            reasons.append(str(error))
    raise InputError(
        f"export: {', '.join(axes)} of this network cannot be dynamic: {reasons[-1]}{_calls(plan)} Export it without, "
        "once for each shape."
    )


def _trials(plan: Plan, axes: Sequence[str], resize: ResizeRule, saved: Sequence[Shape] | None) -> list[Shape]:
    """Return shapes to compare at, which differ from the plan's own in every dynamic dimension."""
    n, c, *own = plan.input_shape
    batch = 3 * n if "batch" in axes else n
    free = [axis in axes for axis in ("height", "width")]
    if not any(free):
        return [plan.input_shape if saved is not None else (batch, c, *own)]
    if saved is not None:
        fits = [s for s in saved if all(f or a == b for f, a, b in zip(free, s[2:], own, strict=True))]
        others = [s for s in fits if all(a != b for f, a, b in zip(free, s[2:], own, strict=True) if f) and s[1] == c]
        others = [s for s in others if "batch" in axes or s[0] == n]
        if not others:
            raise InputError(
                "this engine was loaded from a file that holds no second size to compare with; save it with one: "
                "engine.save(path, shapes=[...])."
            )
        return others
    sizes = (_EVEN, _ODD) if resize is to_present_size else (_EVEN,)
    return [(batch, *_with_size(plan, axes, size)[1:]) for size in sizes]


def _with_size(plan: Plan, axes: Sequence[str], size: tuple[int, int]) -> Shape:
    """Return the plan's input shape with `size` in the dynamic dimensions."""
    n, c, *own = plan.input_shape
    sides = zip(("height", "width"), size, own, strict=True)
    return (n, c, *(free if axis in axes else fixed for axis, free, fixed in sides))


def _wide(plan: Plan) -> Plan:
    """Return the plan in float32 at least: rounding in half precision would hide a different interpolation."""
    return replace(plan, dtype=torch.promote_types(plan.dtype, torch.float32))


def _dimensions(plan: Plan, axes: Sequence[str]) -> dict[int, str]:
    """Return the axes by the input's dimension."""
    places = dict(zip(AXES, (0, 2, 3) if plan.normalization is None else (0, 1, 2), strict=True))
    return {places[axis]: axis for axis in axes}


def _exported(module: FoldedNetwork, names: Mapping[int, str]) -> torch.export.ExportedProgram:
    x = module.plan.example_input()
    if 0 in names and x.shape[0] == 1:
        x = torch.cat([x, x])  # a dimension of 1 is taken as a constant
    free = dict.fromkeys(names, torch.export.Dim.DYNAMIC)
    try:
        return torch.export.export(module, (x,), dynamic_shapes=(free,))
    except HRNetFastError:
        raise
    except Exception as error:  # the exporter raises many types, mostly for sizes that are numbers in a call
        message = " ".join(str(error).split())[:200]
        raise InputError(f"torch.export says: {message}.") from error


def _compare(program: torch.export.ExportedProgram, reference: FoldedNetwork, batches: int) -> None:
    """Raise InputError unless the program computes what the plan of another shape does, on a batch of so many parts."""
    one = reference.plan.example_input()
    random = torch.Generator().manual_seed(0)
    x = torch.rand((batches * one.shape[0], *one.shape[1:]), generator=random)
    x = (255 * x).to(torch.uint8) if one.dtype == torch.uint8 else x.to(one.dtype)
    with torch.no_grad():
        answers = [tree_leaves(reference(part)) for part in x.chunk(batches)]
        try:
            given = tree_leaves(program.module()(x))
        except Exception as error:  # a guard, or a call that the size does not fit
            message = " ".join(str(error).split())[:200]
            raise InputError(f"at an input of {list(x.shape)} it fails ({message}).") from error
    for value, *parts in zip(given, *answers, strict=True):
        if not isinstance(value, Tensor):
            continue
        wanted = torch.cat(parts) if batches > 1 else parts[0]
        same = value.shape == wanted.shape
        if not same or not (value.double() - wanted.double()).norm() <= _TOLERANCE * wanted.double().norm():
            raise InputError(f"at an input of {list(x.shape)} it would answer something else.")


def _calls(plan: Plan) -> str:
    """Return a sentence that names the functions the model calls, whose arguments may hold sizes."""
    functions = [getattr(s.function, "function", s.function) for s in plan.steps if isinstance(s, CallStep)]
    names = dict.fromkeys(str(getattr(function, "__name__", function)) for function in functions)
    return f" Its forward calls {', '.join(names)}, which may be given sizes as numbers." if names else ""
