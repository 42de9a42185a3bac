"""``Metric``: what all metrics share, which is their state and its union over batches and processes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor

from hrnet_fast.errors import InputError, shown

M = TypeVar("M", bound="Metric")


class Metric(ABC):
    """Figures over many batches.

    ``update(...)`` takes one batch, ``compute()`` returns the figures of all batches so far by name. Between them a
    metric keeps totals, which are tensors that are added up, and samples, which are tensors with a row per face or
    pose. Both stay on the device of the batch. ``update`` of CUDA tensors does not wait for the device; ``compute``
    does, and values are therefore checked there.
    """

    def __init__(self, *settings: object) -> None:
        self._settings = settings
        self.reset()

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the figures by name."""

    def reset(self) -> None:
        """Forget all batches."""
        self._totals: dict[str, Tensor] = {}
        self._samples: list[tuple[Tensor, ...]] = []
        self._records: list[dict[str, Any]] = []

    def merge(self: M, other: M) -> None:
        """Add the batches of `other`, a metric of the same class and settings.

        Raises:
            InputError: `other` is no such metric, or has another number of classes or keypoints.
        """
        if type(other) is not type(self) or other._settings != self._settings:
            raise InputError(f"merge: {shown(other)} given; accepted is a {type(self).__name__} of the same settings.")
        for name, value in other._totals.items():
            self._add(name, value)
        self._samples += other._samples
        self._records += other._records

    def gather(self: M, group: Any = None) -> M:
        """Return a metric with the batches of all processes of `group`, in the order of ranks; this one stays as it is.

        Every process of the group must call it (``torch.distributed.all_gather_object``; NCCL needs
        ``torch.cuda.set_device`` before). Without an initialised process group it returns a copy. An image that two
        processes evaluate, such as those that ``DistributedSampler`` repeats at the end, counts twice.
        """
        from torch import distributed

        together = copy.copy(self)
        together.reset()
        if not (distributed.is_available() and distributed.is_initialized()):
            together.merge(self)
            return together
        mine = copy.copy(self)
        mine._totals = {name: value.cpu() for name, value in self._totals.items()}
        mine._samples = [tuple(value.cpu() for value in row) for row in self._samples]
        parts: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(parts, (mine._totals, mine._samples, mine._records), group=group)
        for mine._totals, mine._samples, mine._records in parts:
            together.merge(mine)
        return together

    def _add(self, name: str, value: Tensor) -> None:
        total = self._totals.get(name)
        if total is None:
            self._totals[name] = value
            return
        if total.shape != value.shape:
            raise InputError(
                f"{type(self).__name__}: a batch has shape {list(value.shape)} where others had "
                f"{list(total.shape)}; give all of them the same number of keypoints or classes."
            )
        # Not in place: a total from torch.inference_mode could not be changed outside of it.
        self._totals[name] = total + value.to(total.device)

    def _add_samples(self, *values: Tensor) -> None:
        # Copies: a graph's replay overwrites its outputs.
        self._samples.append(tuple(value.detach().clone() for value in values))

    def _all_samples(self) -> list[Tensor]:
        """Return each kind of sample over all batches, on the host; an empty list before the first batch."""
        return [torch.cat([value.cpu() for value in column]) for column in zip(*self._samples, strict=True)]

    def _require_batches(self) -> None:
        if not (self._totals or self._samples or self._records):
            raise InputError(
                f"{type(self).__name__}: compute() before the first update(); there is nothing to compute."
            )
