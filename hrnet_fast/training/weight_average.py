"""An average of weights, ``torch.optim.swa_utils.AveragedModel``, that a captured step moves."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hrnet_fast.training.tensor_list import tensor_list


class WeightAverage:
    """Moves an average as its own ``update_parameters`` does, eagerly or by launches that a capture can record.

    Args:
        average: the averaged model.
        model: the model that trains.
    """

    def __init__(self, average: AveragedModel, model: nn.Module) -> None:
        self.average, self._model = average, model
        self._count: Tensor | None = None  # n_averaged on the device
        self._known = -1
        self._written: Any = None  # a list of what captured updates write

    def refusal(self, device: torch.device) -> str | None:
        """Say why it cannot be captured, or None."""
        average: Any = self.average
        if average.multi_avg_fn is None:
            return (
                "the AveragedModel has no multi_avg_fn; make it with "
                "multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)"
            )
        if any(t.device != device for t in (*average.module.parameters(), *average.module.buffers())):
            return "the AveragedModel is on another device than the model"
        return None

    def update(self) -> None:
        """Move it eagerly.

        ``update_parameters`` waits for a CUDA device to read how many updates there were; but for the first update,
        which copies, the launches of a capture do not.
        """
        average: Any = self.average
        device = next(average.module.parameters()).device
        counted = average.n_averaged.device.type == "cpu" and int(average.n_averaged) > 0
        if device.type != "cuda" or not counted or self.refusal(device) is not None:
            average.update_parameters(self._model)
        else:
            self.prepare(device)
            self.captured_update()
            self.replayed()

    def prepare(self, device: torch.device) -> None:
        """Have the number of updates on the device, before a capture or a replay."""
        n = self.average.n_averaged
        if n.device == device:
            self._count = n
            return
        if self._count is None or self._count.device != device:
            self._count, self._known = torch.zeros((), dtype=torch.long, device=device), -1
        if self._known != int(n):
            self._known = int(n)
            self._count.fill_(self._known)

    @torch.no_grad()
    def captured_update(self) -> None:
        """Move it by multi-tensor launches; the first update, which copies, was an eager one."""
        average: Any = self.average
        assert self._count is not None
        self._written = tensor_list([*average.module.parameters(), *average.module.buffers()])
        pairs = list(zip(average.module.parameters(), self._model.parameters(), strict=False))
        buffers = list(zip(average.module.buffers(), self._model.buffers(), strict=True))
        for own, given in _by_dtype(pairs + buffers * average.use_buffers):
            average.multi_avg_fn(own, given, self._count)
        if not average.use_buffers:
            for own, given in _by_dtype(buffers):
                torch._foreach_copy_(own, given)
        self._count.add_(1)

    def replayed(self) -> None:
        """Move the versions of what a replayed update wrote; count it where the number is kept on the host."""
        self._written.increment_versions()
        if self._count is not self.average.n_averaged:
            self.average.n_averaged += 1
            self._known += 1


def _by_dtype(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    found: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for own, given in pairs:
        lists = found[own.dtype, given.dtype]
        lists[0].append(own.detach())
        lists[1].append(given.detach())
    return list(found.values())
