"""Compiles the Triton kernels of an executor side by side, before it is tuned.

Compiled one by one between measurements, the dozens of kernels of a first engine take minutes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrnet_fast.inference.execution.arena import adoptable
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.fused_sum_trial import describe_fusion
from hrnet_fast.inference.execution.launch_groups import LaunchGroup, convolution
from hrnet_fast.inference.execution.sum_fusion import SumFusion
from hrnet_fast.inference.execution.sums import copies, fused, fusible, sum_implementation
from hrnet_fast.inference.execution.tactics import Geometry, geometry
from hrnet_fast.inference.execution.weight_store import WeightStore
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import ConvStep, SumStep, View
from hrnet_fast.ops.primitives import load_kernel_compiler

SECONDS = 60.0  # after which no kernel of a candidate is begun
THREADS = 16  # at most: each holds a compiler's memory


class _Launch(NamedTuple):
    """What launches kernels: a candidate of a geometry or of a fusion, or a step that has no alternative."""

    call: Callable[[], Any]
    measured: Geometry | str | None = None
    candidate: str = ""


def compile_kernels(
    plan: Plan, groups: Sequence[LaunchGroup], fusions: Sequence[SumFusion], weights: WeightStore, autotuner: Autotuner
) -> None:
    """Compile what the launch groups of a plan and the candidates of its tuning launch.

    The autotuner counts the kernels and the time. Candidates that are not begun in time are not measured.
    """
    if weights.device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return
    compiler, begin = load_kernel_compiler()(min(THREADS, os.cpu_count() or 1)), time.perf_counter()
    with compiler.in_place_of_launches():
        for launch in _launches(plan, groups, fusions, weights, autotuner):
            if launch.measured is not None and time.perf_counter() - begin > SECONDS:
                autotuner.uncompiled.setdefault(launch.measured, set()).add(launch.candidate)
                continue
            with contextlib.suppress(Exception):  # the launch itself raises it again, where it is dealt with
                launch.call()
    if compiler.compiled:
        autotuner.compiled_kernels += compiler.compiled
        autotuner.compiling += time.perf_counter() - begin


def _launches(
    plan: Plan, groups: Sequence[LaunchGroup], fusions: Sequence[SumFusion], weights: WeightStore, autotuner: Autotuner
) -> Iterator[_Launch]:
    """Yield what has no alternative first."""
    blank = _BlankMaps(plan, weights.device)
    sums, seen = sum_implementation(plan.dtype, weights.device), set[str]()
    for group in groups:
        text = "; ".join(plan.describe(plan.steps[i]) for i in group.steps)
        if text in seen:
            continue
        seen.add(text)
        step = plan.steps[group.steps[-1]]
        if group.is_grouped_conv:
            yield _Launch(lambda group=group: _grouped(plan, group, weights, blank))  # type: ignore[misc]
        elif isinstance(step, SumStep) and sums == "triton" and fusible(step, sums) and not copies(step):
            terms, size = [blank(t.source) for t in step.terms], plan.shape(step.out)[2:]
            yield _Launch(lambda step=step, terms=terms, size=size: fused(step, terms, size, sums))  # type: ignore[misc]
    may_adopt, found = adoptable(plan), set[Geometry]()
    for group in groups:
        step = plan.steps[group.steps[0]]
        if len(group.steps) == 1 and isinstance(step, ConvStep):
            g = geometry(plan, step, step.out.buffer in may_adopt)
            if g not in found:
                found.add(g)
                for name, call in autotuner.launches(g, weights.get(plan.weights[step.weight])).items():
                    yield _Launch(call, g, name)
    for fusion in fusions:
        for name, call in autotuner.fusion_launches(plan, fusion, weights).items():
            yield _Launch(call, describe_fusion(plan, fusion), name)


class _BlankMaps:
    """Maps of a plan's shapes and strides whose values nobody reads."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._plan, self._device = plan, device

    def __call__(self, view: View) -> Tensor:
        b = self._plan.buffers[view.buffer]
        whole = torch.empty(b.n, b.height, b.width, b.channels, dtype=self._plan.dtype, device=self._device)
        return whole.permute(0, 3, 1, 2).narrow(1, view.offset, view.channels)


def _grouped(plan: Plan, group: LaunchGroup, weights: WeightStore, blank: _BlankMaps) -> None:
    steps = [convolution(plan, i) for i in group.steps]
    packed = weights.group([plan.weights[step.weight] for step in steps])
    residuals = [None if step.residual is None else blank(step.residual) for step in steps]
    packed([blank(step.source) for step in steps], residuals, steps[0].relu[0] < steps[0].relu[1])
