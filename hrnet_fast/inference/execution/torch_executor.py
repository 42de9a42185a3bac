"""Plans on PyTorch's operators and this package's, over static channels-last maps: on CUDA devices, and wherever the
C++ executor does not serve.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from hrnet_fast.errors import InputError
from hrnet_fast.inference.arguments import as_calls_read_it, calls_read_input, fill_in, named_leaves, own_copy
from hrnet_fast.inference.execution.arena import ArenaMaps, adoptable, arena_layout
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.launch_groups import convolution, grouped_units, last_units, single_units
from hrnet_fast.inference.execution.sums import add_up, copies, fused, fusible, sum_implementation
from hrnet_fast.inference.execution.tactics import Geometry, Tactic, geometry
from hrnet_fast.inference.execution.weight_store import FoldedWeight, GroupedWeights, WeightStore
from hrnet_fast.inference.plan import CallStep, ConvStep, ExportStep, ImportStep, Plan, PoolStep, SumStep


@contextlib.contextmanager
def plain_tensors(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, and no inference tensors: those could not be written to outside inference mode."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def indexed(device: torch.device | str) -> torch.device:
    """Return the device by number: "cuda" alone is another one whenever the current device is."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def takes_images(plan: Plan) -> bool:
    """Whether the plan's input is bytes [N, H, W, C]."""
    return any(isinstance(s, ImportStep) and s.scale is not None for s in plan.steps)


def check_input(plan: Plan, x: Tensor) -> None:
    """Raise InputError unless `x` has the plan's shape: a copy into place would broadcast others in silence."""
    n, c, h, w = plan.input_shape
    wanted = (n, h, w, c) if takes_images(plan) else (n, c, h, w)
    if tuple(x.shape) != wanted:
        raise InputError(f"input of shape {list(x.shape)} given; this plan is for {list(wanted)}.")


@dataclass(frozen=True)
class _Convolution:
    geometry: Geometry
    way: Tactic
    weights: FoldedWeight


class TorchExecutor:
    """Carries out a plan in the plan's dtype; calls of several threads take turns.

    Maps lie in one arena at fixed places, but for those that are as a whole what the library returned. Besides these, a
    call allocates outputs.

    Args:
        plan: the plan.
        tensors: the model's parameters and buffers by name.
        device: of maps and outputs.
        outer: dtype of outputs; None is the maps', float32 at least.
        weights, chooser: shared with other executors of the same dtype and device; None makes own ones.
        grouped: whether the branches' parallel 3x3 convolutions are one ``grouped_conv3x3``.
        arena: gives memory for maps, by bytes and device, that no other executor uses at the same time; None allocates.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        device: torch.device | str,
        *,
        outer: torch.dtype | None = None,
        weights: WeightStore | None = None,
        chooser: Autotuner | None = None,
        grouped: bool = False,
        arena: Callable[[int, torch.device], Tensor] | None = None,
    ) -> None:
        self.plan, self.device, self.grouped = plan, indexed(device), grouped
        self.inner = torch.promote_types(plan.dtype, torch.float32)  # of tensors that are no maps
        self.outer = outer or self.inner
        self.chooser = chooser or Autotuner(self.device, plan.dtype)
        self._lock = threading.Lock()
        self._sums = sum_implementation(plan.dtype, self.device)
        with plain_tensors(self.device):
            self._owns = weights is None
            self.weights = weights or WeightStore(tensors, plan.dtype, self.device)
            self.units = grouped_units(plan) if grouped else single_units(plan)
            self._groups: dict[tuple[int, ...], GroupedWeights] = {
                unit: self.weights.group([plan.weights[convolution(plan, i).weight] for i in unit])
                for unit in self.units
                if len(unit) > 1
            }
            self._convs = self._chosen()
            layout = arena_layout(plan, self._adopted())
            self.maps = ArenaMaps(plan, layout, self.device, arena and arena(layout.bytes, self.device))
            self._named = self._read(tensors)
            self._images = {i: self._affine(step) for i, step in enumerate(plan.steps) if isinstance(step, ImportStep)}
        self._input_is_read = calls_read_input(plan)
        self._last = last_units(plan, self.units)

    def __call__(self, x: Tensor, copy: bool = True) -> Any:
        """Return the network's output for `x` [N, C, H, W] of the plan's shape: new tensors, whatever `copy` says."""
        with self._lock, plain_tensors(self.device):
            return self.run(x)

    def ready(self) -> None:
        """Nothing waits for a later call."""

    @property
    def arena_bytes(self) -> int:
        """Bytes of maps that a call keeps at once."""
        return self.plan.peak_memory

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Write new weights into the storage of the old ones; shared weights are refreshed by whoever shares them."""
        with self._lock, plain_tensors(self.device):
            if self._owns:
                self.weights.refresh(tensors)
            for name, tensor in self._read(tensors).items():
                self._named[name].copy_(tensor)

    def profile(self, x: Tensor, rounds: int = 3) -> list[tuple[int, float]]:
        """Return (step, seconds) with every step run by itself, the median of rounds; a group's by multiply-adds."""
        taken: list[list[float]] = [[] for _ in self.units]
        with self._lock, plain_tensors(self.device):
            for turn in range(rounds + 1):
                times: list[float] = []
                self.run(x, times=times)
                if turn:  # the first one makes what is made once
                    for found, seconds in zip(taken, times, strict=True):
                        found.append(seconds)
        shares: list[tuple[int, float]] = []
        for unit, found in zip(self.units, taken, strict=True):
            work = [max(1, self.plan.step_flops(self.plan.steps[i])) for i in unit]
            seconds = statistics.median(found)
            shares += [(i, seconds * w / sum(work)) for i, w in zip(unit, work, strict=True)]
        return sorted(shares)

    def describe(self) -> list[str]:
        """What runs, how it was chosen, and what it holds."""
        own = sum(offset is None for offset in self.maps.layout.offsets)
        lines = [
            f"PyTorch's operators on {self.device} in {str(self.plan.dtype).removeprefix('torch.')}: maps in an arena "
            f"of {self.maps.layout.bytes / 2**20:.1f} MiB, {own} of {len(self.plan.buffers)} as the library returns "
            "them"
        ]
        if self._groups:
            lines.append(
                f"{sum(map(len, self._groups))} convolutions in {len(self._groups)} launches of grouped_conv3x3"
            )
        counts = Counter(c.way.name for c in self._convs.values())
        if counts:
            lines.append("convolutions: " + ", ".join(f"{n} by {name}" for name, n in counts.most_common()))
        used = {c.geometry for c in self._convs.values()}
        lines += [f"  {g}: {choice}" for g, choice in self.chooser.choices.items() if g in used]
        return lines

    def run(
        self,
        x: Tensor,
        *,
        around: Callable[[int], contextlib.AbstractContextManager[None]] | None = None,
        times: list[float] | None = None,
        joined: Callable[[], None] = lambda: None,
    ) -> Any:
        """Carry out the plan, without lock and modes.

        Args:
            around: what each unit (by number) runs in. Then maps that the library returned stay until the next run:
                work on other streams may still read them.
            times: collects every unit's seconds.
            joined: called when all units are on their way, before outputs are made of what they leave.
        """
        check_input(self.plan, x)
        slots: list[Any] = [None] * self.plan.slots
        slots[0] = x
        self.maps.keeping(around is not None)
        for k, unit in enumerate(self.units):
            start = self._clock() if times is not None else 0.0
            with contextlib.nullcontext() if around is None else around(k):
                if len(unit) > 1:
                    self._run_group(unit)
                else:
                    self._run_step(unit[0], slots)
            if times is not None:
                times.append(self._clock() - start)
            if around is None:
                for buffer in self._last.get(k, ()):
                    self.maps.release(buffer)
        joined()
        return tree_map(
            lambda t: t.to(self.outer) if isinstance(t, Tensor) and t.is_floating_point() else t,
            fill_in(self.plan.output, self._as_called(slots), self._named, self.inner),
        )

    def _as_called(self, slots: list[Any]) -> list[Any]:
        """The slots as calls and callers see them: the input as the model takes it."""
        if not self._input_is_read:
            return slots
        return [as_calls_read_it(self.plan, slots[0], self.inner), *slots[1:]]

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _run_group(self, unit: tuple[int, ...]) -> None:
        steps = [convolution(self.plan, i) for i in unit]
        xs = [self.maps[s.source] for s in steps]
        residuals = [None if s.residual is None else self.maps[s.residual] for s in steps]
        made = self._groups[unit](xs, residuals, steps[0].relu[0] < steps[0].relu[1])
        for step, result in zip(steps, made, strict=True):
            self.maps.put(step.out, result)

    def _run_step(self, i: int, slots: list[Any]) -> None:
        step, maps = self.plan.steps[i], self.maps
        if isinstance(step, ConvStep):
            c = self._convs[i]
            residual = None if step.residual is None else maps[step.residual]
            out = None if maps.adopts(step.out) else maps[step.out]
            result = c.way.run(c.geometry, c.weights, maps[step.source], residual, out)
            if result is not out:
                maps.put(step.out, result)
        elif isinstance(step, SumStep):
            self._sum(step)
        elif isinstance(step, PoolStep):
            maps.put(step.out, F.avg_pool2d(maps[step.source], step.size, step.size))
        elif isinstance(step, ExportStep):
            slots[step.slot] = maps[step.source].to(self.inner, copy=True, memory_format=torch.contiguous_format)
        elif isinstance(step, CallStep):
            args, kwargs = (
                fill_in(a, self._as_called(slots), self._named, self.inner) for a in (step.args, step.kwargs)
            )
            slots[step.slot] = step.function(*args, **kwargs)
        else:
            given, affine = slots[step.slot], self._images[i]
            if affine is not None:
                given = (given.to(self.inner) * affine[0] + affine[1]).permute(0, 3, 1, 2)
            maps.target(step.out).copy_(given)

    def _sum(self, step: SumStep) -> None:
        maps, size = self.maps, self.plan.shape(step.out)[2:]
        terms = [maps[t.source] for t in step.terms]
        if copies(step):
            maps.target(step.out).copy_(terms[0])
        elif fusible(step, self._sums):
            maps.put(step.out, fused(step, terms, size, self._sums))
        else:
            add_up(step, terms, size, lambda: maps.target(step.out))

    def _chosen(self) -> dict[int, _Convolution]:
        single = [unit[0] for unit in self.units if len(unit) == 1]
        may = adoptable(self.plan)
        found = {}
        for i in single:
            step = self.plan.steps[i]
            if isinstance(step, ConvStep):
                g = geometry(self.plan, step, step.out.buffer in may)
                weights = self.weights.get(self.plan.weights[step.weight])
                found[i] = _Convolution(g, self.chooser.way(g, weights), weights)
        return found

    def _adopted(self) -> set[int]:
        """Buffers that hold what operators return: copying it to a place of theirs would be a pass more."""
        fresh = {convolution(self.plan, i).out.buffer for unit in self._groups for i in unit}
        fresh |= {convolution(self.plan, i).out.buffer for i, c in self._convs.items() if c.way.fresh(c.geometry)}
        fresh |= {step.out.buffer for step in self.plan.steps if isinstance(step, (SumStep, PoolStep))}
        return fresh & adoptable(self.plan)

    def _read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the tensors that calls take, in their dtype."""
        calls = [(step.args, step.kwargs) for step in self.plan.steps if isinstance(step, CallStep)]
        names = {leaf.name for leaf in named_leaves([*calls, self.plan.output])}
        return {name: own_copy(tensors[name], self.device, self.inner) for name in names}

    def _affine(self, step: ImportStep) -> tuple[Tensor, Tensor] | None:
        """Scale and shift of an import that takes bytes, made once: a capture may not copy from the host."""
        if step.scale is None or step.shift is None:
            return None
        like = {"dtype": self.inner, "device": self.device}
        return torch.tensor(step.scale, **like), torch.tensor(step.shift, **like)  # type: ignore[arg-type]
