"""``TrainingOrder``: which sample is in which micro-batch of which process, for a whole run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hrnet_fast.errors import ConfigError
from hrnet_fast.recipes.recipe import LoopRecipe


class SampleKey(NamedTuple):
    """A sample's index in the data set, and the seed of what is random in reading it."""

    sample: int
    seed: int


class MicroBatchKeys(NamedTuple):
    """The samples of a micro-batch, and the seed of what is random in its inputs."""

    samples: list[SampleKey]
    seed: int


def derived_seed(*parts: int | str) -> int:
    """Return a seed from 0 to 2**63 - 1 that depends on all `parts`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class TrainingOrder:
    """The order of samples, a pure function of the seed and the epoch.

    A global batch is a run of `batch_size` samples of the epoch's random order. It is divided into `accumulate`
    micro-batches, and each of these into a share for every process. The samples of a micro-batch are therefore the
    same for every number of processes, and every process has equally many steps. It does not depend on the workers.

    Attributes:
        samples: number of training samples.
        loop: batch size, micro-batches, epochs, seed, and whether the smaller last batch is trained on.
        processes, rank: how many processes share each batch, and which of them this is.

    Raises:
        ConfigError: the batch cannot be divided, or there is less than one batch.
    """

    samples: int
    loop: LoopRecipe
    processes: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        size, accumulate = self.loop.batch_size, self.loop.accumulate
        if size % self.parts:
            raise ConfigError(
                f"loop.batch_size={size} cannot be divided by loop.accumulate={accumulate} micro-batches times "
                f"{self.processes} processes; accepted are multiples of {self.parts}."
            )
        if not self.iterations_per_epoch:
            raise ConfigError(
                f"{self.samples} training samples are less than one batch (loop.batch_size={size}, "
                f"keep_last_batch={self.loop.keep_last_batch}, {self.parts} equal parts); take a smaller batch."
            )

    @property
    def parts(self) -> int:
        """Micro-batches of all processes in one update."""
        return self.loop.accumulate * self.processes

    @property
    def last_share(self) -> int:
        """Samples of each part in the smaller last batch of an epoch, 0 where there is none."""
        return self.samples % self.loop.batch_size // self.parts if self.loop.keep_last_batch else 0

    @property
    def iterations_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.samples // self.loop.batch_size + bool(self.last_share)

    @property
    def iterations(self) -> int:
        """Updates in the run."""
        return self.loop.epochs * self.iterations_per_epoch

    @property
    def left_out(self) -> int:
        """Samples that an epoch leaves out, others in every epoch."""
        return self.samples % self.loop.batch_size - self.last_share * self.parts

    def share(self, iteration: int) -> int:
        """Return the samples of this process in each micro-batch of an update."""
        last = (iteration + 1) % self.iterations_per_epoch == 0
        return self.last_share if last and self.last_share else self.loop.batch_size // self.parts

    def epoch_order(self, epoch: int) -> list[int]:
        """Return the samples' indices in the order of an epoch, counted from 0."""
        generator = torch.Generator().manual_seed(derived_seed(self.loop.seed, "order", epoch))
        return torch.randperm(self.samples, generator=generator).tolist()  # type: ignore[no-any-return]

    def micro_batches(self, first: int) -> Iterator[list[SampleKey]]:
        """Yield this process's part of every micro-batch, from update `first` (counted from 0) to the run's end."""
        known, order = -1, list[int]()
        for iteration in range(first, self.iterations):
            epoch, place = divmod(iteration, self.iterations_per_epoch)
            if epoch != known:
                known, order = epoch, self.epoch_order(epoch)
            share = self.share(iteration)
            for micro in range(self.loop.accumulate):
                start = place * self.loop.batch_size + (micro * self.processes + self.rank) * share
                yield [
                    SampleKey(index, derived_seed(self.loop.seed, "sample", epoch, index))
                    for index in order[start : start + share]
                ]

    def augmentation_seed(self, iteration: int, micro: int) -> int:
        """Return the seed of what is random in a micro-batch's inputs on the device; each process has its own."""
        return derived_seed(self.loop.seed, "inputs", iteration, micro, self.rank)


class MicroBatches:
    """The ``batch_sampler`` of a data loader: the micro-batches from one update on, with the seeds of their inputs."""

    def __init__(self, order: TrainingOrder, first: int) -> None:
        self._order, self._first = order, first

    def __iter__(self) -> Iterator[MicroBatchKeys]:
        for place, samples in enumerate(self._order.micro_batches(self._first)):
            iteration, micro = divmod(place, self._order.loop.accumulate)
            yield MicroBatchKeys(samples, self._order.augmentation_seed(self._first + iteration, micro))

    def __len__(self) -> int:
        return (self._order.iterations - self._first) * self._order.loop.accumulate
