"""Losses on their way from the device, read some updates later so that nothing waits for them; losses not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from hrnet_fast.errors import TrainingError, some_of
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.run_reports import RunReports
from hrnet_fast.trainer.sampler import TrainingOrder

LAG = 2  # updates on a CUDA device between a loss and its reading


@dataclass
class UpdateLoss:
    """The loss of one update.

    Attributes:
        iteration: the update, counted from 0.
        places: file and row of the samples of this process.
        value: mean over the micro-batches, once it is read.
        named: likewise of its named parts.
    """

    iteration: int
    places: list[tuple[str, str]] = field(default_factory=list)
    value: float = math.nan
    named: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    parts: list[Tensor] = field(default_factory=list)
    arrived: Any = None

    @property
    def files(self) -> list[str]:
        """The samples' files with their rows, each once."""
        texts = (f"{path} ({row})" if row else path for path, row in self.places)
        return list(dict.fromkeys(texts))


class PendingLosses:
    """Reads losses without waiting for the device more than it must.

    A loss is copied to pinned memory behind its micro-batch, and read :data:`LAG` updates later. Where the device has
    not computed it by then the host waits, so that it is never more updates ahead. On CPUs there is no lag.

    Args:
        device: where losses are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lag = LAG if device.type == "cuda" else 0
        self._pending: deque[UpdateLoss] = deque()
        self._free: list[Tensor] = []

    def add(
        self, iteration: int, loss: Tensor, batch: Any, last: bool, named: Mapping[str, Tensor] | None = None
    ) -> None:
        """Note the loss of a micro-batch.

        Args:
            iteration: the update that it belongs to.
            loss: one element, on the device.
            batch: has ``paths`` and ``rows``.
            last: whether it is the update's last micro-batch.
            named: parts of the loss, the same ones each time.
        """
        if not self._pending or self._pending[-1].iteration != iteration:
            self._pending.append(UpdateLoss(iteration))
        entry = self._pending[-1]
        entry.places += zip(batch.paths, batch.rows, strict=True)
        loss = loss.detach().reshape(())
        if named:
            entry.names = tuple(named)
            loss = torch.stack([loss, *(part.detach().to(loss.dtype).reshape(()) for part in named.values())])
        if self._device.type == "cuda":
            host = self._free.pop() if self._free else torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True)
            entry.parts.append(host.copy_(loss, non_blocking=True))
            if last:
                entry.arrived = torch.cuda.current_stream(self._device).record_event()
        else:
            entry.parts.append(loss)

    def arrived(self, *, all_of_them: bool = False) -> list[UpdateLoss]:
        """Return, in order, the losses that are due: the same ones in every process.

        Args:
            all_of_them: wait for the device and return every one.
        """
        found: list[UpdateLoss] = []
        while len(self._pending) > (0 if all_of_them else self._lag):
            entry = self._pending.popleft()
            if entry.arrived is not None and not entry.arrived.query():
                entry.arrived.synchronize()
            columns = zip(*(part.reshape(-1).tolist() for part in entry.parts), strict=True)
            entry.value, *means = (sum(column) / len(entry.parts) for column in columns)
            entry.named = dict(zip(entry.names, means, strict=True))
            if entry.arrived is not None:
                self._free += entry.parts
            entry.parts = []
            found.append(entry)
        return found


class RunLosses:
    """The losses of a run: reported as they arrive; one that is not finite ends the run, in all processes alike.

    Args:
        order: of the run's samples.
        processes: of the run.
        reports: receive losses, and why the run ends.
        rate: returns the learning rate of an iteration.
        saved_state: says which state of the run is saved.

    Attributes:
        bad: the first loss of this process that is not finite.
    """

    def __init__(
        self,
        order: TrainingOrder,
        processes: Processes,
        reports: RunReports,
        rate: Callable[[int], float],
        saved_state: Callable[[], str],
    ) -> None:
        self._order, self._processes, self._reports = order, processes, reports
        self._rate, self._saved_state = rate, saved_state
        self._pending = PendingLosses(processes.device)
        self.add = self._pending.add
        self.bad: UpdateLoss | None = None

    def read(self, all_of_them: bool = False) -> None:
        """Take the losses that are due, or all of them."""
        for entry in self._pending.arrived(all_of_them=all_of_them):
            if self.bad is None and not math.isfinite(entry.value):
                self.bad = entry
            self._reports.loss(entry.iteration, entry.value, self._rate(entry.iteration), entry.named)
        if self._processes.count == 1 and self.bad is not None:
            self.refuse()

    def settle(self) -> None:
        """Take all losses, and end the run where a process has one that is not finite."""
        self.read(all_of_them=True)
        if self._processes.largest([float(self.bad is not None)])[0]:
            self.refuse()

    def refuse(self) -> NoReturn:
        """End the run because of a loss that is not finite, in all processes alike.

        Raises:
            TrainingError: always.
        """
        own = None if self.bad is None else (self.bad.iteration, self.bad.value, self.bad.files)
        found = [one for one in self._processes.gathered(own) if one is not None]
        iteration, value, _ = min(found, key=lambda one: one[0])
        files = [name for one in found if one[0] == iteration for name in one[2]]
        epoch = iteration // self._order.iterations_per_epoch
        self._reports.stop(f"the loss is {value}", update=iteration + 1, epoch=epoch + 1, files=files)
        raise TrainingError(
            f"The loss is {value} at iteration {iteration + 1} (epoch {epoch + 1}); its batch: {some_of(files, 64)}. "
            f"Look at these samples, lower the learning rate or warm it up. {self._saved_state()}"
        )
