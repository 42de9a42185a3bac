"""``PendingLosses``: losses on their way from the device, read some updates later so that nothing waits for them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

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
