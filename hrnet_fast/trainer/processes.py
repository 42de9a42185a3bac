"""``Processes``: the processes of one run, as ``torchrun`` starts them, and what they tell each other on the host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from hrnet_fast.checks import check_device
from hrnet_fast.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen by one of them. Nothing here waits for a device.

    Attributes:
        device: of this process.
        count, rank: how many there are, and which this is.
        group: a group of processes that exchanges tensors of the host; None with one process.
    """

    device: torch.device
    count: int = 1
    rank: int = 0
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each value over all processes."""
        return self._reduced(values, distributed.ReduceOp.MAX) if self.count > 1 else list(values)

    def means(self, values: Sequence[float]) -> list[float]:
        """Return the mean of each value over all processes."""
        if self.count == 1:
            return list(values)
        return [value / self.count for value in self._reduced(values, distributed.ReduceOp.SUM)]

    def gathered(self, value: Any) -> list[Any]:
        """Return every process's object, in the order of ranks."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self.group)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, where alone it is called; or raise its exception in all."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, 0, group=self.group, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the first process's buffers, such as running statistics, to the network of each process.

        They are of the device, and go through the group that ``DistributedDataParallel`` uses.
        """
        if self.count > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, operation, group=self.group)
        return tensor.tolist()  # type: ignore[no-any-return]


@contextlib.contextmanager
def joined_processes(device: str | torch.device, captured: bool = False) -> Iterator[Processes]:
    """Yield the processes of this run: those of ``torchrun``'s environment, of an initialised group, or one.

    A group that is initialised here is destroyed behind the context. On CUDA devices, the process with local rank k
    takes the k-th.

    Args:
        device: ``"cpu"``, ``"cuda"`` or, for one process, a device's name.
        captured: whether steps are captured as CUDA graphs.

    Raises:
        InputError: the device cannot be used.
    """
    available = distributed.is_available()
    mine = available and not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if mine:
        found = _device_of(device)
        if captured:  # as PyTorch documents for captures with NCCL
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        distributed.init_process_group("cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo")
    try:
        if not available or not distributed.is_initialized() or distributed.get_world_size() == 1:
            yield Processes(check_device("train", device))
            return
        group = None if mine else distributed.new_group(backend="gloo")
        yield Processes(_device_of(device), distributed.get_world_size(), distributed.get_rank(), group)
    finally:
        if mine and distributed.is_initialized():
            distributed.destroy_process_group()


def _device_of(device: str | torch.device) -> torch.device:
    """Return the device of this process."""
    named = torch.device(device)
    if named.type != "cuda":
        return check_device("train", device)
    if named.index is not None:
        raise InputError(
            f"train: device {named} given to each of several processes; accepted is 'cuda': the process with local "
            "rank k takes the k-th device."
        )
    found = check_device("train", f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}")
    torch.cuda.set_device(found)
    return found
