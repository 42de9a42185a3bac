"""An arrangement of a plan's launch groups on a CUDA device: in order, on streams or grouped; and its graph."""

from __future__ import annotations

from typing import Any

from hrnet_fast.inference.execution.cuda_graph import CapturedGraph, CudaDevice, GraphPool
from hrnet_fast.inference.execution.stream_schedule import StreamSchedule, schedule
from hrnet_fast.inference.execution.torch_executor import TorchExecutor

MODES = ("sequential", "streams", "grouped")


class Arrangement:
    """A torch executor whose launches can be captured as one graph.

    Args:
        mode: one of :data:`MODES`.
        executor: runs the plan.
        x: the static input, or several, that the graph reads.
        device: graphs and streams.
    """

    def __init__(self, mode: str, executor: TorchExecutor, x: Any, device: CudaDevice) -> None:
        self.mode, self.executor = mode, executor
        self._input, self._device = x, device
        self._schedule: StreamSchedule | None = None
        if mode == "streams":
            self._schedule = schedule(executor.plan, executor.maps.layout, executor.groups)
        self.graph: CapturedGraph | None = None
        self._outputs: Any = None

    def capture(self, pool: GraphPool) -> Exception | None:
        """Warm up and capture. Return what a capture raised that single launches do not, or None.

        Raises:
            Exception: whatever the launches raise without a capture.
        """
        maps, device = self.executor.maps, self._device
        try:
            device.warm_up(self._launch)
            try:
                self.graph, self._outputs = device.capture(self._launch, pool.memory(device))
            except Exception as error:  # functions that the network calls may raise anything under a capture
                return error
            return None
        finally:
            # Adopted tensors belong to the graph's memory pool, which only replays use.
            maps.keeping(False)
            for buffer in range(len(self.executor.plan.buffers)):
                maps.release(buffer)

    def replay(self) -> Any:
        """Replay the graph on the static input's values. Return its outputs, which the next replay overwrites."""
        assert self.graph is not None
        self.graph.replay()
        return self._outputs

    def _launch(self) -> Any:
        streams = None if self._schedule is None else self._device.fork(self._schedule)
        return self.executor.run(self._input, streams=streams)

    def __str__(self) -> str:
        text = f"{len(self.executor.groups)} launches"
        if self.graph is None or self._schedule is None:
            return f"{text} one after the other" + " with branches grouped" * (self.mode == "grouped")
        waits = sum(map(len, self._schedule.waits))
        return f"{text} on {self._schedule.count} streams with {waits} waits between them"
