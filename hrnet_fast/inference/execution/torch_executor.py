"""The torch executor: plans by PyTorch's and this package's operators, on CUDA devices and without the CPU program."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hrnet_fast.errors import InputError
from hrnet_fast.inference.execution.arena import ArenaMaps, adoptable, arena_layout
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.evaluator import run_step
from hrnet_fast.inference.execution.fused_sum_trial import FUSED, describe_fusion, fused_sum_weights, run_fused_sum
from hrnet_fast.inference.execution.kernel_compilation import compile_kernels
from hrnet_fast.inference.execution.launch_groups import (
    LaunchGroup,
    buffer_lifetimes,
    convolution,
    last_groups,
    launch_groups,
)
from hrnet_fast.inference.execution.sum_fusion import find_sum_fusions
from hrnet_fast.inference.execution.sums import add_up, copies, fused, fusible, sum_implementation
from hrnet_fast.inference.execution.tactics import Geometry, Tactic, geometry
from hrnet_fast.inference.execution.weight_store import FoldedWeight, FusedSumWeights, GroupedWeights, WeightStore
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.planning.tracer import input_shapes
from hrnet_fast.inference.slots import Slots, copy_state, normalization_tensors
from hrnet_fast.inference.steps import ConvStep, PoolStep, SumStep


class StreamFork(Protocol):
    """Streams that were forked from the current one, on which launch groups run."""

    def __call__(self, group: int) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a group runs on its stream."""

    def join(self) -> None:
        """Let the stream that all were forked from wait for the others."""


@contextlib.contextmanager
def plain_tensors(device: torch.device) -> Iterator[None]:
    """Disable gradients, autocast and inference mode, whose tensors could not be written to outside of it."""
    nothing = contextlib.nullcontext()  # contexts that change nothing cost more than the questions
    inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nothing
    autocast = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nothing
    with inference, torch.no_grad(), autocast:
        yield


def indexed(device: torch.device | str) -> torch.device:
    """Return the device with its number: "cuda" means whatever device is current."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def check_input(plan: Plan, x: Tensor | tuple[Tensor, ...]) -> None:
    """Raise InputError unless `x` has the plan's shape. A copy to a buffer would broadcast other shapes."""
    wanted = input_shapes(plan.input_shape)
    if plan.normalization is not None:
        n, c, h, w = wanted[0]
        wanted = [(n, h, w, c)]
    given = [tuple(t.shape) for t in ([x] if isinstance(x, Tensor) else x)]
    if given != wanted:
        texts = (", ".join(str(list(shape)) for shape in shapes) for shapes in (given, wanted))
        raise InputError("input of shape {} given; this plan is for {}.".format(*texts))


@dataclass(frozen=True)
class _TunedConv:
    geometry: Geometry
    tactic: Tactic
    weights: FoldedWeight


class TorchExecutor:
    """Runs a plan in the plan's dtype, one call at a time.

    Maps lie in one arena at fixed places, except buffers that adopt the results of operators.

    Args:
        plan: the plan.
        tensors: the model's parameters and buffers by name.
        device: of maps and outputs.
        outer: dtype of outputs; None is the maps', float32 at least.
        weights, autotuner: shared with other executors of the same dtype and device; None makes new ones.
        grouped: whether parallel 3x3 convolutions of the branches are one ``grouped_conv3x3``.
        arena: returns memory for maps, by bytes and device, that no other executor uses meanwhile; None allocates.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        device: torch.device | str,
        *,
        outer: torch.dtype | None = None,
        weights: WeightStore | None = None,
        autotuner: Autotuner | None = None,
        grouped: bool = False,
        arena: Callable[[int, torch.device], Tensor] | None = None,
    ) -> None:
        self.plan, self.device = plan, indexed(device)
        self.inner = torch.promote_types(plan.dtype, torch.float32)  # of tensors outside the buffers
        self.outer = outer or self.inner
        self.autotuner = autotuner or Autotuner(self.device, plan.dtype)
        self._lock = threading.Lock()
        self._sums = sum_implementation(plan.dtype, self.device)
        with plain_tensors(self.device):
            self._owns_weights = weights is None
            self.weights = weights or WeightStore(tensors, plan.dtype, self.device)
            groups, fusions = launch_groups(plan, grouped), find_sum_fusions(plan) if self.autotuner.fuses_sums else []
            compile_kernels(plan, groups, fusions, self.weights, self.autotuner)
            # Convolutions first: fusions are compared with their tactics, and get what is left of the time for tuning.
            convs = self._tuned_convs(groups)
            fused = [fusion for fusion in fusions if self.autotuner.fuses(plan, fusion, self.weights)]
            self.groups = launch_groups(plan, grouped, fused)
            self._convs = {i: conv for i, conv in convs.items() if all(i not in fusion.convs for fusion in fused)}
            self._tuned = {c.geometry for c in self._convs.values()} | {describe_fusion(plan, f) for f in fusions}
            self._grouped_weights: dict[LaunchGroup, GroupedWeights] = {
                group: self.weights.group([plan.weights[convolution(plan, i).weight] for i in group.steps])
                for group in self.groups
                if group.is_grouped_conv
            }
            self._fused_weights: dict[LaunchGroup, FusedSumWeights] = {
                group: fused_sum_weights(plan, group.fused, self.weights)
                for group in self.groups
                if group.fused is not None
            }
            layout = arena_layout(plan, self._adopting(), buffer_lifetimes(plan, self.groups))
            self.maps = ArenaMaps(plan, layout, self.device, arena and arena(layout.bytes, self.device))
            self._state = copy_state(plan, tensors, self.device, self.inner)
            self._normalization = normalization_tensors(plan, self.device, self.inner)
        self._last = last_groups(self.groups)

    def __call__(self, x: Tensor | tuple[Tensor, ...], copy: bool = True) -> Any:
        """Return the network's output for `x` [N, C, H, W] of the plan's shape, always in new tensors."""
        with self._lock, plain_tensors(self.device):
            return self.run(x)

    def ready(self) -> None:
        """Do nothing: everything is prepared in the constructor."""

    @property
    def arena_bytes(self) -> int:
        """Bytes of maps that a call keeps at once."""
        return self.plan.peak_memory

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Write new weights into the storage of the old ones. The owner of shared weights refreshes those."""
        with self._lock, plain_tensors(self.device):
            if self._owns_weights:
                self.weights.refresh(tensors)
            for name, tensor in copy_state(self.plan, tensors, self.device, self.inner).items():
                self._state[name].copy_(tensor)

    def profile(self, x: Tensor | tuple[Tensor, ...], rounds: int = 3) -> list[tuple[int, float]]:
        """Return (step, seconds): the median of rounds. The time of a group is divided by multiply-adds."""
        samples: list[list[float]] = []
        with self._lock, plain_tensors(self.device):
            self.run(x)  # the first run allocates
            for _ in range(rounds):
                samples.append([])
                self.run(x, times=samples[-1])
        shares: list[tuple[int, float]] = []
        for group, seconds in zip(self.groups, zip(*samples, strict=True), strict=True):
            work = [max(1, self.plan.step_flops(self.plan.steps[i])) for i in group.steps]
            shares += [(i, statistics.median(seconds) * w / sum(work)) for i, w in zip(group.steps, work, strict=True)]
        return sorted(shares)

    def describe(self) -> list[str]:
        """Return lines about memory, tactics and their measurements."""
        own = sum(offset is None for offset in self.maps.layout.offsets)
        lines = [
            f"PyTorch's operators on {self.device} in {str(self.plan.dtype).removeprefix('torch.')}: maps in an arena "
            f"of {self.maps.layout.bytes / 2**20:.1f} MiB, {own} of {len(self.plan.buffers)} as operators return them"
        ]
        for groups, name in ((self._grouped_weights, "grouped_conv3x3"), (self._fused_weights, FUSED)):
            if groups:
                lines.append(f"{sum(len(g.steps) for g in groups)} steps in {len(groups)} launches of {name}")
        counts = Counter(c.tactic.name for c in self._convs.values())
        if counts:
            lines.append("convolutions: " + ", ".join(f"{n} by {name}" for name, n in counts.most_common()))
        if self.autotuner.compiled_kernels:
            late = sum(map(len, self.autotuner.uncompiled.values()))
            lines.append(
                f"{self.autotuner.compiled_kernels} Triton kernels compiled, or read from Triton's cache, in "
                f"{self.autotuner.compiling:.1f} s"
                + f"; {late} candidates are not measured, as the time for compiling was spent"
                * bool(late)
            )
        lines += [f"  {what}: {result}" for what, result in self.autotuner.results.items() if what in self._tuned]
        return lines

    def run(
        self,
        x: Tensor | tuple[Tensor, ...],
        *,
        streams: StreamFork | None = None,
        times: list[float] | None = None,
    ) -> Any:
        """Run the plan, without lock and modes.

        Args:
            x: the input.
            streams: what launch groups run on; None is the current stream. Adopted tensors are then kept until the next
                run, as other streams may still read them.
            times: collects the seconds of every group.
        """
        check_input(self.plan, x)
        slots = Slots(self.plan, x, self._state, self.inner, self._normalization)
        self.maps.keeping(streams is not None)
        for k, group in enumerate(self.groups):
            start = self._clock() if times is not None else 0.0
            with contextlib.nullcontext() if streams is None else streams(k):
                self._run_group(group, slots)
            if times is not None:
                times.append(self._clock() - start)
            if streams is None:
                for buffer in self._last.get(k, ()):
                    self.maps.release(buffer)
        if streams is not None:
            streams.join()
        return slots.output(self.outer)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _run_group(self, group: LaunchGroup, slots: Slots) -> None:
        if group.fused is not None:
            step = self.plan.steps[group.fused.step]
            assert isinstance(step, SumStep)
            xs, size = [self.maps[t.source] for t in group.fused.terms], self.plan.shape(step.out)[2:]
            self.maps.put(step.out, run_fused_sum(step, xs, self._fused_weights[group], size))
        elif group.is_grouped_conv:
            steps = [convolution(self.plan, i) for i in group.steps]
            xs = [self.maps[s.source] for s in steps]
            residuals = [None if s.residual is None else self.maps[s.residual] for s in steps]
            results = self._grouped_weights[group](xs, residuals, steps[0].relu[0] < steps[0].relu[1])
            for step, result in zip(steps, results, strict=True):
                self.maps.put(step.out, result)
        else:
            run_step(self.plan, group.steps[0], self.maps, slots, self)

    def convolve(self, number: int, step: ConvStep) -> None:
        """Compute a convolution step by its tactic."""
        maps, conv = self.maps, self._convs[number]
        residual = None if step.residual is None else maps[step.residual]
        out = None if maps.adopts(step.out) else maps[step.out]
        result = conv.tactic.run(conv.geometry, conv.weights, maps[step.source], residual, out)
        if result is not out:
            maps.put(step.out, result)

    def add(self, step: SumStep) -> None:
        """Compute a sum step by ``fuse_sum``, or by pointwise operators where that has no fast implementation."""
        maps, size = self.maps, self.plan.shape(step.out)[2:]
        terms = [maps[t.source] for t in step.terms]
        if copies(step):
            maps.write(step.out, terms[0])
        elif fusible(step, self._sums):
            maps.put(step.out, fused(step, terms, size, self._sums))
        else:
            add_up(step, terms, size, lambda: maps.target(step.out))

    def _tuned_convs(self, groups: Sequence[LaunchGroup]) -> dict[int, _TunedConv]:
        """Return tactics of the convolutions that are launched by themselves, by step."""
        may_adopt = adoptable(self.plan)
        found = {}
        for group in groups:
            step = self.plan.steps[group.steps[0]]
            if len(group.steps) == 1 and isinstance(step, ConvStep):
                g = geometry(self.plan, step, step.out.buffer in may_adopt)
                weights = self.weights.get(self.plan.weights[step.weight])
                found[group.steps[0]] = _TunedConv(g, self.autotuner.tactic(g, weights), weights)
        return found

    def _adopting(self) -> set[int]:
        """Return the buffers that adopt results: those that some operator would have to be copied to."""
        fresh = {view.buffer for group in self.groups if len(group.steps) > 1 for view in group.writes}
        fresh |= {convolution(self.plan, i).out.buffer for i, c in self._convs.items() if c.tactic.fresh(c.geometry)}
        fresh |= {step.out.buffer for step in self.plan.steps if isinstance(step, (SumStep, PoolStep))}
        return fresh & adoptable(self.plan)
