"""The CUDA executor: a plan as one captured graph, in the arrangement of launches that measures fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.errors import ImplementationError, InputError
from hrnet_fast.inference.execution.arrangement import MODES, Arrangement
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.candidate_timing import fastest
from hrnet_fast.inference.execution.cuda_graph import CudaDevice, GraphPool
from hrnet_fast.inference.execution.execution_state import ExecutionState, State
from hrnet_fast.inference.execution.tactics import Library, operator_unsupported_reason
from hrnet_fast.inference.execution.torch_executor import TorchExecutor, check_input, indexed, plain_tensors
from hrnet_fast.inference.execution.tuning_cache import TuningResult, key_for
from hrnet_fast.inference.execution.weight_store import WeightStore
from hrnet_fast.inference.plan import Plan


class CudaExecutor:
    """Runs a plan as one CUDA graph, one call at a time. :class:`ExecutionState` has the states.

    Args:
        plan: the plan.
        tensors: the model's parameters and buffers by name.
        device: of maps, inputs and outputs.
        mode: ``"sequential"``, one launch after the other; ``"streams"``, independent launches on several streams;
            ``"grouped"``, parallel 3x3 convolutions of the branches in one launch; ``"auto"``, the fastest of these.
        outer: dtype of outputs; None is the maps', float32 at least.
        pool: memory shared with graphs of other executors, which then run one at a time; None makes a new one.
        weights, autotuner: shared with other executors of the same dtype and device; None makes new ones.
        backend: graphs and streams; None is CUDA's.
        ready: whether to tune and capture now, instead of at the second call or at :meth:`ready`.

    Raises:
        ImplementationError: an unknown mode, or ``"grouped"`` without a fast implementation of that operator.
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
        autotuner: Autotuner | None = None,
        backend: CudaDevice | None = None,
        ready: bool = True,
    ) -> None:
        if mode not in ("auto", *MODES):
            raise ImplementationError(f"CudaExecutor: mode {mode!r}; accepted are {', '.join(('auto', *MODES))}.")
        self.plan, self.device = plan, indexed(device)
        unsupported = self._grouped_unsupported_reason() if mode == "grouped" else None
        if unsupported is not None:
            raise ImplementationError(f"CudaExecutor: mode 'grouped': {unsupported}; take 'auto'.")
        self._tensors, self._requested_mode, self._outer = tensors, mode, outer
        self._backend = backend or CudaDevice(self.device)
        self._pool = pool or GraphPool()
        self._states = ExecutionState()
        self.tuning: TuningResult | None = None
        self._owns_weights = weights is None
        with self._exclusive():
            self._weights = weights or WeightStore(tensors, plan.dtype, self.device)
            self._autotuner = autotuner or Autotuner(self.device, plan.dtype)
            self._input = plan.example_input(self.device)
            if ready:
                self._tune()
            else:
                library = Autotuner(self.device, plan.dtype, Library.name)
                self._arrangement = self._arranged(MODES[0], library)

    def ready(self) -> None:
        """Tune and capture, unless that is done or failed too often.

        Raises:
            InputError: the current stream is being captured.
            Exception: whatever the network's calls or a lack of memory raise; the state stays EAGER then.
        """
        with self._exclusive():
            if self.state is State.EAGER or self._states.tuning_due:
                self._tune()

    @property
    def state(self) -> State:
        """How calls run."""
        return self._states.state

    @property
    def mode(self) -> str:
        """The arrangement, one of :data:`MODES`."""
        return self._arrangement.mode

    def __call__(self, x: Tensor | tuple[Tensor, ...], copy: bool = True) -> Any:
        """Return the network's output for `x` of the plan's shape.

        Args:
            x: [N, C, H, W]; for plans of images, bytes [N, H, W, C]; or several inputs.
            copy: whether to return new tensors instead of those that the next call overwrites.
        """
        check_input(self.plan, x)
        with self._exclusive():
            if self._backend.capturing():
                # Launches become part of the caller's graph, which cannot contain a graph of ours.
                return self._arrangement.executor.run(x)
            self._backend.after(self._pool.mark)
            if self._states.tuning_due:
                try:
                    self._tune()
                except Exception as error:  # a lack of memory, or whatever a call raises at warm-up
                    self._states.tuning_failed(error)
            try:
                return self._run(x, copy)
            finally:  # launches before an error run in shared memory too
                self._pool.mark = self._backend.mark()

    def _run(self, x: Tensor | tuple[Tensor, ...], copy: bool) -> Any:
        if self.state is State.CAPTURED:
            for static, given in zip(tree_leaves(self._input), tree_leaves(x), strict=True):
                static.copy_(given)
            outputs = self._arrangement.replay()
            return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, outputs) if copy else outputs
        outputs = self._arrangement.executor.run(x)
        if self.state is State.EAGER:
            self._states.eager_call_finished()
        return outputs

    @property
    def arena_bytes(self) -> int:
        """Bytes of maps that a call keeps at once."""
        return self.plan.peak_memory

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Write new weights into the storage that the graph reads. The owner of shared weights refreshes those."""
        with self._exclusive(), self._ordered():
            self._tensors = tensors
            if self._owns_weights:
                self._weights.refresh(tensors)
            self._arrangement.executor.refresh(tensors)

    def profile(self, x: Tensor | tuple[Tensor, ...], rounds: int = 3) -> list[tuple[int, float]]:
        """Return (step, seconds) with every launch timed by itself from the host."""
        self.ready()
        with self._exclusive(), self._ordered():
            return self._arrangement.executor.profile(x, rounds)

    def describe(self) -> list[str]:
        """Return lines about the state, the arrangement, tactics and their measurements."""
        reason = "in one graph" if self._states.reason is None else f"no graph: {self._states.reason}"
        tuning = "not measured" if self.state is State.EAGER else f"{self.tuning or 'as requested'}"
        return [
            f"{self.state.value}: {self._arrangement}, {reason}",
            f"  arrangement: {tuning}",
            *self._arrangement.executor.describe(),
        ]

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One call at a time among all executors of the pool, on this device, with plain tensors."""
        with self._pool.lock, self._backend.here(), plain_tensors(self.device):
            yield

    @contextlib.contextmanager
    def _ordered(self) -> Iterator[None]:
        """Order launches behind those of earlier calls, which share memory."""
        self._backend.after(self._pool.mark)
        try:
            yield
        finally:
            self._pool.mark = self._backend.mark()

    def _tune(self) -> None:
        """Measure, capture, and change the state."""
        if self._backend.capturing():
            raise InputError("Engine: no graph can be made while another is captured; prepare shapes before.")
        with self._ordered():
            if self._requested_mode == "auto":
                self._arrangement, self.tuning, error = self._fastest_arrangement()
            else:
                self._arrangement, error = self._captured(self._requested_mode)
        if error is None:
            self._states.capture_finished()
        else:
            self._states.capture_failed(error)

    def _fastest_arrangement(self) -> tuple[Arrangement, TuningResult, Exception | None]:
        """Return the fastest arrangement, its measurement, and why it has no graph."""
        made: dict[str, Arrangement] = {}

        def candidate(mode: str) -> Callable[[], Any]:
            def call() -> Any:
                if mode not in made:
                    arrangement, error = self._captured(mode)
                    if error is not None:
                        raise error
                    made[mode] = arrangement
                return made[mode].replay()

            return call

        plan = self.plan
        shape = "x".join(map(str, plan.input_shape))
        key = key_for(
            f"arrangement of {shape}", f"{len(plan.steps)} steps", plan.flops, plan.bytes, device=self.device,
            dtype=plan.dtype,
        )  # fmt: skip
        # The cache distinguishes sets of candidates: a mode that becomes available is measured.
        modes = [mode for mode in MODES if mode != "grouped" or self._grouped_unsupported_reason() is None]
        try:
            result = fastest(key, {mode: candidate(mode) for mode in modes}, rounds=9, device=self.device)
        except ImplementationError as failure:
            result = TuningResult(key, MODES[0], reasons={"all": str(failure)})
        if result.winner in made:
            return made[result.winner], result, None
        arrangement, error = self._captured(result.winner)
        return arrangement, result, error

    def _captured(self, mode: str) -> tuple[Arrangement, Exception | None]:
        """Return an arrangement with measured tactics, and why it has no graph."""
        arrangement = self._arranged(mode, self._autotuner)
        return arrangement, arrangement.capture(self._pool)

    def _arranged(self, mode: str, autotuner: Autotuner) -> Arrangement:
        executor = TorchExecutor(
            self.plan, self._tensors, self.device, outer=self._outer, weights=self._weights, autotuner=autotuner,
            grouped=mode == "grouped", arena=self._pool.arena,
        )  # fmt: skip
        return Arrangement(mode, executor, self._input, self._backend)

    def _grouped_unsupported_reason(self) -> str | None:
        return operator_unsupported_reason("grouped_conv3x3", self.device, self.plan.dtype)
