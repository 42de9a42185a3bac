"""Batches of this process's part of a data set, and what all evaluations share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from hrnet_fast.checks import check_integer
from hrnet_fast.errors import InputError, shown

Network = Callable[[Tensor], Any]
Progress = Callable[[int, int], None]
M = TypeVar("M")


def own_part(count: int) -> range:
    """Return this process's samples: consecutive ones, so that the parts together are the data set in its order."""
    from torch import distributed

    rank, world = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, world = distributed.get_rank(), distributed.get_world_size()
    return range(count * rank // world, count * (rank + 1) // world)


def gathered(own: Any) -> list[Any]:
    """Return what each process gives, by rank; every process must call it."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts


def total_of(*numbers: int) -> list[int]:
    """Return the sums of numbers over all processes; every process must call it."""
    return [sum(column) for column in zip(*gathered(numbers), strict=True)]


class EvaluationBatches:
    """The batches of this process's part of a data set, each on the host and on the device.

    Nothing here waits for the device. Batches without a usable sample are left out; broken samples are counted, and
    reported to the data set's ``add_skipped``.

    Args:
        dataset: has ``__len__``.
        collate: of the loader; gives batches with ``to``, ``len`` and ``skipped``.
        device: of the network.
        workers: processes that decode; 0 decodes in this one.
        batch_size: samples for each batch.
        progress: called after each batch with the samples done, skipped ones among them, and their number.

    Attributes:
        skipped: broken samples so far.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[Sequence[Any]], Any],
        device: torch.device | str,
        *,
        workers: int,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        check_integer("evaluation", "workers", workers, least=0)
        check_integer("evaluation", "batch_size", batch_size)
        self._dataset, self._device, self._progress = dataset, torch.device(device), progress
        self._part = own_part(len(dataset))  # type: ignore[arg-type]
        self._loader = DataLoader(
            Subset(dataset, self._part),
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # the global generator stays as it is, and with it a resumed training
        )
        self.skipped = 0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        done = 0
        for batch in self._loader:
            if batch.skipped:
                self.skipped += len(batch.skipped)
                self._dataset.add_skipped(batch.skipped)  # type: ignore[attr-defined]
            if len(batch):
                yield batch, batch.to(self._device, non_blocking=True)
            done += len(batch) + len(batch.skipped)
            if self._progress is not None:
                self._progress(done, len(self._part))


def check_network(what: str, network: object) -> None:
    """Check that a network is callable and in evaluation mode.

    Raises:
        InputError: it is not.
    """
    if not callable(network) or isinstance(network, type):
        raise InputError(f"{what}: network is {shown(network)}; accepted is a model, an engine or a function.")
    if isinstance(network, nn.Module) and network.training:
        raise InputError(f"{what}: the network is in training mode; call its eval() before.")


def last_output(what: str, output: object, dimensions: int) -> Tensor:
    """Return a network's last output, the main one of those with several.

    Raises:
        InputError: it is no tensor of `dimensions`.
    """
    last = output[-1] if isinstance(output, (list, tuple)) and output else output
    if not isinstance(last, Tensor) or last.dim() != dimensions:
        given = list(last.shape) if isinstance(last, Tensor) else type(last).__name__
        accepted = "[N, classes]" if dimensions == 2 else "[N, channels, h, w]"
        raise InputError(f"{what}: the network returns {given}; accepted is a tensor {accepted}, or several.")
    return last


def make_metric(kind: type[M], *arguments: Any, options: Mapping[str, Any]) -> M:
    """Return a metric with options of a recipe.

    Raises:
        InputError: the metric has no such option.
    """
    parameters = list(inspect.signature(kind).parameters)[len(arguments) :]
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        accepted = ", ".join(parameters) or "none"
        raise InputError(f"evaluation.metric_options: {unknown[0]!r} given; {kind.__name__} takes {accepted}.")
    return kind(*arguments, **options)
