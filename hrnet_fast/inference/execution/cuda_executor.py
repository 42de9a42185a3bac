"""Plans on CUDA devices: one graph that is launched at once, in the arrangement of steps that is fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hrnet_fast.errors import ImplementationError, InputError
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.cuda_graph import CapturedGraph, CudaDevice, Device, GraphPool
from hrnet_fast.inference.execution.stream_schedule import Schedule, schedule
from hrnet_fast.inference.execution.tactics import Library, operator_unsupported_reason
from hrnet_fast.inference.execution.torch_executor import (
    TorchExecutor,
    check_input,
    indexed,
    plain_tensors,
    takes_images,
)
from hrnet_fast.inference.execution.tuning_cache import Choice, fastest, key_for
from hrnet_fast.inference.execution.weight_store import WeightStore
from hrnet_fast.inference.plan import Plan

MODES = ("sequential", "streams", "grouped")


class CudaExecutor:
    """Carries out a plan as one CUDA graph; calls of several threads take turns.

    Args:
        plan: the plan.
        tensors: the model's parameters and buffers by name.
        device: of maps, inputs and outputs.
        mode: ``"sequential"``, one step after the other; ``"streams"``, independent steps side by side; ``"grouped"``,
            the branches' parallel 3x3 convolutions in one launch each; ``"auto"``, whichever measures fastest.
        outer: dtype of outputs; None is the maps', float32 at least.
        pool: memory shared with the graphs of other executors, which then take turns; None makes one.
        weights, chooser: shared with other executors of the same dtype and device; None makes own ones.
        backend: graphs and streams; None is CUDA's.
        ready: False leaves measuring and capturing to the second call (or :meth:`ready`), as many a shape comes once:
            the first one runs the library's operators one after the other.

    Raises:
        ImplementationError: an unknown mode, or ``"grouped"`` where that operator has no fast implementation.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, Tensor],
        device: torch.device | str,
        mode: str = "auto",
        *,
        outer: torch.dtype | None = None,
        pool: GraphPool | None = None,
        weights: WeightStore | None = None,
        chooser: Autotuner | None = None,
        backend: Device | None = None,
        ready: bool = True,
    ) -> None:
        if mode not in ("auto", *MODES):
            raise ImplementationError(f"CudaExecutor: mode {mode!r}; accepted are {', '.join(('auto', *MODES))}.")
        self.plan, self.device = plan, indexed(device)
        self._outer = outer
        self._backend = backend or CudaDevice(self.device)
        self._pool = pool or GraphPool()
        self._owns = weights is None
        self._tensors = tensors
        self._wanted: str | None = mode  # until it is made, or has failed
        self._called = False
        self.choice: Choice | None = None
        lacking = self._grouped_unsupported_reason() if mode == "grouped" else None
        if lacking is not None:
            raise ImplementationError(f"CudaExecutor: mode 'grouped': {lacking}; take 'auto'.")
        with self._pool.lock, self._backend.here(), plain_tensors(self.device):
            self._weights = weights or WeightStore(tensors, plan.dtype, self.device)
            self._chooser = chooser or Autotuner(self.device, plan.dtype)
            self._input = _static_input(plan, self.device)
            if ready:
                self.ready()
            else:
                self._run = self._run_of(MODES[0], Autotuner(self.device, plan.dtype, Library.name))

    def ready(self) -> None:
        """Measure and capture, if that was left for later.

        Raises:
            InputError: somebody captures the current stream.
            Exception: whatever the network's calls or the lack of memory raise; what ran before stays.
        """
        with self._pool.lock, self._backend.here(), plain_tensors(self.device):
            if self._wanted is not None:
                if self._backend.capturing():
                    raise InputError("Engine: no graph can be made while another is captured; prepare shapes before.")
                self._backend.after(self._pool.mark)  # whatever shape runs in the memory that is shared
                try:
                    self.choice = self._choose(self._wanted)
                finally:
                    self._pool.mark = self._backend.mark()
                self._wanted = None

    @property
    def mode(self) -> str:
        """How steps are arranged."""
        return self._run.mode

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph."""
        return self._run.graph is not None

    def __call__(self, x: Tensor, copy: bool = True) -> Any:
        """Return the network's output for `x` of the plan's shape.

        Args:
            x: [N, C, H, W]; for plans of images, bytes [N, H, W, C].
            copy: whether to return new tensors; otherwise those that the next call overwrites.
        """
        check_input(self.plan, x)
        with self._pool.lock, self._backend.here(), plain_tensors(self.device):
            if self._backend.capturing():
                # Somebody else's graph takes the steps; it cannot hold one of ours.
                return self._run.library.run(x)
            self._backend.after(self._pool.mark)
            if self._called and self._wanted is not None:
                self._ready_or_as_before()
            self._called = True
            try:
                if not self.captured:
                    return self._run.plainly(x)
                self._input.copy_(x)
                made = self._run()
                return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, made) if copy else made
            finally:  # what was launched before an error runs in shared memory too
                self._pool.mark = self._backend.mark()

    def _ready_or_as_before(self) -> None:
        """What answered once goes on to answer, and says why in no better way."""
        try:
            self.ready()
        except Exception as error:  # whatever a call raises at warm-up, memory above all
            self._wanted, self._run.note = None, f"{type(error).__name__}: {error}"[:300]

    @property
    def arena_bytes(self) -> int:
        """Bytes of maps that a call keeps at once."""
        return self.plan.peak_memory

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Write new weights where the graph reads them; shared weights are refreshed by whoever shares them."""
        with self._pool.lock, self._backend.here(), plain_tensors(self.device):
            self._backend.after(self._pool.mark)
            self._tensors = tensors
            if self._owns:
                self._weights.refresh(tensors)
            self._run.library.refresh(tensors)
            self._pool.mark = self._backend.mark()

    def profile(self, x: Tensor, rounds: int = 3) -> list[tuple[int, float]]:
        """Return (step, seconds) with every step run by itself and from the host: launches included."""
        self.ready()
        with self._pool.lock, self._backend.here(), self._backend.settings():
            self._backend.after(self._pool.mark)
            found = self._run.library.profile(x, rounds)
            self._pool.mark = self._backend.mark()
            return found

    def describe(self) -> list[str]:
        """What was chosen, and why."""
        return [
            f"arranged {self._run}",
            f"  {self.choice or ('as asked' if self._run.tried else 'not measured')}",
            *self._run.library.describe(),
        ]

    def _choose(self, mode: str) -> Choice | None:
        """Make the run of a mode, or of the fastest one."""
        if mode != "auto":
            self._run = self._made(mode)
            return None
        runs: dict[str, _Run] = {}

        def candidate(name: str) -> Callable[[], Any]:
            def call() -> Any:
                if name not in runs:
                    made = self._made(name)
                    if made.graph is None:
                        raise ImplementationError(made.note)
                    runs[name] = made
                return runs[name]()

            return call

        plan = self.plan
        shape = "x".join(map(str, plan.input_shape))
        key = key_for(
            f"arrangement of {shape}", f"{len(plan.steps)} steps", plan.flops, plan.bytes, device=self.device,
            dtype=plan.dtype,
        )  # fmt: skip
        # Without what cannot run: once it can, what was measured without it does not count.
        names = [name for name in MODES if name != "grouped" or self._grouped_unsupported_reason() is None]
        try:
            choice = fastest(key, {name: candidate(name) for name in names}, rounds=9, device=self.device)
        except ImplementationError as error:
            choice = Choice(key, MODES[0], reasons={"all": str(error)})
        # Only the winner stays; a remembered one was not made yet.
        self._run = runs.get(choice.winner) or self._made(choice.winner)
        return choice

    def _made(self, mode: str) -> _Run:
        run = self._run_of(mode, self._chooser)
        run.capture(self._pool)
        return run

    def _run_of(self, mode: str, chooser: Autotuner) -> _Run:
        library = TorchExecutor(
            self.plan, self._tensors, self.device, outer=self._outer, weights=self._weights, chooser=chooser,
            grouped=mode == "grouped", arena=self._pool.arena,
        )  # fmt: skip
        return _Run(mode, library, self._input, self._backend)

    def _grouped_unsupported_reason(self) -> str | None:
        return operator_unsupported_reason("grouped_conv3x3", self.device, self.plan.dtype)


class _Run:
    """A plan in one mode: a graph, or where there is none its steps one after the other."""

    def __init__(self, mode: str, library: TorchExecutor, x: Tensor, backend: Device) -> None:
        self.mode, self.library, self.note = mode, library, "it is the first call of this shape"
        self.tried = False
        self.schedule: Schedule | None = None
        self._input, self._backend = x, backend
        self.graph: CapturedGraph | None = None
        self._made: Any = None
        if mode == "streams":
            self.schedule = schedule(library.plan, library.maps.layout, library.units)

    def capture(self, pool: GraphPool) -> None:
        """Become a graph.

        Raises:
            Exception: whatever the steps raise without one. What only a capture cannot hold is noted.
        """
        self.tried, backend, library = True, self._backend, self.library
        try:
            with backend.settings():
                backend.warm_up(self._body)
                try:
                    self.graph, self._made = backend.capture(self._body, pool.memory(backend))
                except Exception as error:  # whatever a call in the network does that no graph can hold
                    self.note = f"{type(error).__name__}: {error}"[:300]
        finally:
            # What the capture kept for its own time is the pool's: nobody but graphs that take turns uses it.
            library.maps.keeping(False)
            for buffer in range(len(library.plan.buffers)):
                library.maps.release(buffer)

    def _body(self) -> Any:
        if self.schedule is None:
            return self.library.run(self._input)
        lanes = self._backend.lanes(self.schedule)
        return self.library.run(self._input, around=lanes, joined=lanes.join)

    def __call__(self) -> Any:
        """Replay the graph, on what the static input holds."""
        assert self.graph is not None
        self.graph.replay()
        return self._made

    def plainly(self, x: Tensor) -> Any:
        """Run without a graph; outputs are new tensors."""
        # cuDNN's search takes longer than a call: not for the first one.
        with self._backend.settings() if self.tried else contextlib.nullcontext():
            return self.library.run(x)

    def __str__(self) -> str:
        units = len(self.library.units)
        if self.graph is None:
            return f"one after the other, {units} steps launched by themselves: no graph, as {self.note}"
        if self.schedule is not None:
            waits = sum(map(len, self.schedule.waits))
            return f"in one graph, {units} steps on {self.schedule.count} streams with {waits} waits between them"
        return f"in one graph, {units} steps one after the other" + " with branches grouped" * (self.mode == "grouped")


def _static_input(plan: Plan, device: torch.device) -> Tensor:
    n, c, h, w = plan.input_shape
    if takes_images(plan):
        return torch.zeros((n, h, w, c), dtype=torch.uint8, device=device)
    return torch.zeros((n, c, h, w), dtype=torch.promote_types(plan.dtype, torch.float32), device=device)
