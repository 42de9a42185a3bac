"""Batches of a training run: read in workers, copied to the device ahead of their use."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from hrnet_fast.datasets.samples import SkippedSample
from hrnet_fast.errors import DatasetError, TrainingError
from hrnet_fast.random_states import kept_host_random_states, seed_host_generators
from hrnet_fast.trainer.sampler import MicroBatches, MicroBatchKeys, SampleKey, TrainingOrder

SUBSTITUTES = 20  # broken samples in a row that others stand in for


@dataclass(frozen=True)
class ReadingFailure:
    """What a worker sends instead of a sample or batch that cannot be read.

    Attributes:
        message: what is wrong, and where.
        path, row: of the sample, "" where they are not known.
        details: the traceback, "" for errors in the data, which the message explains.
    """

    message: str
    path: str = ""
    row: str = ""
    details: str = ""

    def raised(self) -> DatasetError:
        """Return it as an exception."""
        error = DatasetError(self.message, path=self.path, row=self.row)
        if self.details:
            error.__cause__ = RuntimeError(self.details)
        return error


class ReadSamples(NamedTuple):
    """The items of a micro-batch, and the seed of what is random in its inputs."""

    items: list[list[Any] | ReadingFailure]
    seed: int


class SeededSamples(Dataset[Any]):
    """A data set that is indexed by :class:`SampleKey`: what is random in a sample depends on its seed alone.

    Each item is a list: a sample; or the broken samples that were skipped and the one that stands in for them, the next
    of the data set that can be read. Batches keep their size so, which captured steps and several processes need.
    """

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples = samples

    def __getitem__(self, key: SampleKey) -> list[Any] | ReadingFailure:
        with kept_host_random_states() if get_worker_info() is None else nullcontext():
            seed_host_generators(key.seed)
            return self._read(key.sample)

    def __getitems__(self, keys: MicroBatchKeys) -> ReadSamples:
        """Return the samples of a micro-batch; PyTorch's loader asks for all of them at once."""
        return ReadSamples([self[key] for key in keys.samples], keys.seed)

    def _read(self, index: int) -> list[Any] | ReadingFailure:
        found: list[Any] = []
        count = len(self.samples)  # type: ignore[arg-type]
        for k in range(SUBSTITUTES):
            place = (index + k) % count
            try:
                found.append(self.samples[place])
            except DatasetError as error:
                return ReadingFailure(str(error), error.path, error.row)
            except Exception as error:
                path = _path_of(self.samples, place)
                where = f"sample {place}{f' ({path})' if path else ''}"
                message = f"{where} cannot be read: {type(error).__name__}: {error}"
                return ReadingFailure(message, path, details=traceback.format_exc())
            if not isinstance(found[-1], SkippedSample):
                return found
        first = found[0]
        return ReadingFailure(f"{SUBSTITUTES} samples in a row are broken; the first: {first.reason}", first.path)


def _path_of(samples: Any, index: int) -> str:
    """Return the file of a sample where a data set tells it without reading it, as torchvision's do, or ""."""
    try:
        return str(samples.samples[index][0])
    except Exception:
        return ""


class CollateSamples:
    """Makes a batch of what :class:`SeededSamples` returns.

    Args:
        collate: the task's; it lists skipped samples apart.
        crops: whether `collate` crops too, with a generator in the state that the task's inputs will find theirs in.
    """

    def __init__(self, collate: Callable[..., Any], crops: bool = False) -> None:
        self.collate, self.crops = collate, crops

    def __call__(self, read: ReadSamples) -> Any:
        samples: list[Any] = []
        for item in read.items:
            if isinstance(item, ReadingFailure):
                return item
            samples += item
        try:
            if self.crops:
                return self.collate(samples, torch.Generator().manual_seed(read.seed))
            return self.collate(samples)
        except Exception as error:
            paths = ", ".join(str(getattr(one, "path", "?")) for one in samples)
            message = f"samples make no batch: {type(error).__name__}: {error} (files: {paths})"
            return ReadingFailure(message, details=traceback.format_exc())


def leave_signals_to_the_parent(worker: int) -> None:
    """Let a worker outlive Ctrl-C and SIGTERM to the whole group: the parent finishes its step, and ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def worker_failure(error: RuntimeError) -> TrainingError | None:
    """Return an error for the death of a worker, or None for another error.

    PyTorch raises it when it asks the worker, or from a signal's handler, wherever the program is.
    """
    if not str(error).startswith("DataLoader worker"):
        return None
    failure = TrainingError(f"{str(error).rstrip('. ')}: it was killed, or crashed in a library that decodes.")
    failure.__cause__ = error
    return failure


class TrainingBatches:
    """The batches of one process, on its device.

    On a CUDA device, :meth:`prefetch` reads the next batch and copies it on a stream of its own, while the device still
    computes the step that was launched before.

    Args:
        task: has the samples ``train``, and ``collate_crops`` or ``collate``
            (:class:`~hrnet_fast.trainer.task.TrainingTask`).
        order: which samples.
        first: the update that comes next.
        workers: processes that read; 0 reads in this one.
        device: where batches go.

    Attributes:
        waited: seconds spent waiting for data since :meth:`take_waited`.
    """

    def __init__(
        self,
        task: Any,
        order: TrainingOrder,
        first: int,
        workers: int,
        device: torch.device,
    ) -> None:
        cropping = getattr(task, "collate_crops", None)
        loader = DataLoader(
            SeededSamples(task.train),
            batch_sampler=MicroBatches(order, first),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=CollateSamples(cropping or task.collate, cropping is not None),  # type: ignore[arg-type]
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # the process's own is left alone
        )
        self._iterator: Iterator[Any] | None = iter(loader)
        self._device = device
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ahead: Any = None
        self._current: Any = None  # its memory may not be reused before the step behind it is launched
        self._copied: Any = None
        self._launched: Any = None
        self.waited = 0.0

    def next(self) -> Any:
        """Return the next batch, on the device.

        Raises:
            DatasetError: a sample cannot be read.
            TrainingError: a worker died.
        """
        found = self._read() if self._ahead is None else self._ahead
        self._ahead = None
        if isinstance(found, ReadingFailure):
            raise found.raised()
        if isinstance(found, Exception):
            raise found
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)
        self._current = found
        return found

    def prefetch(self) -> None:
        """Behind the launch of a step: read the next batch, and copy it to a CUDA device."""
        if self._stream is None or self._iterator is None:
            return
        self._ahead = self._read()
        self._launched = torch.cuda.current_stream(self._device).record_event()

    def take_waited(self) -> float:
        """Return the seconds spent waiting for data since the last call."""
        waited, self.waited = self.waited, 0.0
        return waited

    def close(self) -> None:
        """End the workers."""
        self._iterator = self._ahead = self._current = None

    def _read(self) -> Any:
        """Return a batch on the device, or what went wrong: the step before is finished first."""
        assert self._iterator is not None
        begin = time.perf_counter()
        try:
            found = next(self._iterator)
        except StopIteration:
            return None
        except RuntimeError as error:
            failure = worker_failure(error)
            if failure is None:
                raise
            return failure
        finally:
            self.waited += time.perf_counter() - begin
        if isinstance(found, ReadingFailure):
            return found
        if self._stream is None:
            return found.to(self._device, non_blocking=True)
        with torch.cuda.stream(self._stream):
            if self._launched is not None:  # memory of the batch before the current one may be reused
                self._stream.wait_event(self._launched)
            moved = found.to(self._device, non_blocking=True)
            self._copied = self._stream.record_event()
        return moved
