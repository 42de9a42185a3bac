"""The base of the readers: broken samples raise, or are skipped and counted."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hrnet_fast.checks import check_bool
from hrnet_fast.datasets.picture_cache import PictureCache
from hrnet_fast.datasets.reading import read_pixels
from hrnet_fast.datasets.samples import SkippedSample
from hrnet_fast.errors import DatasetError, InputError, shown

Sample = TypeVar("Sample")
Readers = TypeVar("Readers", bound="AnnotatedImages[Any]")


class AnnotatedImages(Dataset[Any], Generic[Sample]):
    """Pictures with annotations; pictures are decoded when they are asked for.

    Subclasses define ``__len__`` and ``read``. With ``skip_broken=True`` a malformed row is left out when the lists are
    read, and a broken picture or mask gives a :class:`~hrnet_fast.datasets.SkippedSample` in place of a sample. The
    ``collate`` functions of this package leave these out of the batch and list them in its ``skipped``. A worker has
    its own copy of this object, so a loop with workers calls ``dataset.add_skipped(batch.skipped)`` for each batch.

    Args:
        skip_broken: count broken samples in :attr:`skipped` instead of raising.

    Attributes:
        cache: of decoded pictures; None decodes them each time.
    """

    cache: PictureCache | None = None

    def __init__(self, skip_broken: bool = False) -> None:
        check_bool(type(self).__name__, skip_broken=skip_broken)
        self.skip_broken = skip_broken
        self._skipped: dict[SkippedSample, None] = {}

    @property
    def skipped(self) -> tuple[SkippedSample, ...]:
        """What was left out, each sample once, however often it was asked for."""
        return tuple(self._skipped)

    def add_skipped(self, samples: Iterable[SkippedSample]) -> None:
        """Count samples that a worker left out."""
        self._skipped.update(dict.fromkeys(samples))

    def raise_or_skip(self, error: DatasetError) -> SkippedSample:
        """Raise `error`, or count it and return what stands in its place."""
        if not self.skip_broken:
            raise error
        sample = SkippedSample(error.path, error.row, str(error))
        self.add_skipped([sample])
        return sample

    def _pixels(self, path: str) -> Tensor:
        """Return a picture, uint8 RGB [H, W, 3], from the cache where there is one."""
        if self.cache is None:
            return read_pixels(path)
        return torch.from_numpy(self.cache.array(path, "pixels", lambda: read_pixels(path).numpy()))

    def _copied(self: Readers) -> Readers:
        part = copy.copy(self)
        part._skipped = dict(self._skipped)
        return part

    def read(self, index: int) -> Sample:
        """Return a decoded sample.

        Raises:
            DatasetError: it is broken.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample | SkippedSample:
        try:
            position = range(len(self))[index]
        except TypeError:
            raise InputError(f"{type(self).__name__}[{shown(index)}]: accepted is a sample's index.") from None
        try:
            return self.read(position)
        except DatasetError as error:
            return self.raise_or_skip(error)
