"""The exceptions of this package. A message says what was given, what is accepted and what to do.

Each also derives from the matching built-in exception: ``ValueError``, ``RuntimeError`` or ``ImportError``.
"""

from __future__ import annotations

from collections.abc import Sequence


class HRNetFastError(Exception):
    """Base class of all exceptions of this package."""


class ConfigError(HRNetFastError, ValueError):
    """A configuration is contradictory, or describes a network that cannot be built."""


class InputError(HRNetFastError, ValueError):
    """An argument, tensor, image or file has an unsupported type, rank, size or content."""


class CheckpointError(HRNetFastError, RuntimeError):
    """A checkpoint cannot be read, recognised or loaded completely.

    Attributes:
        missing: canonical keys that the network needs and the checkpoint lacks.
        unexpected: keys of the checkpoint that the network does not have.
        mismatched: ``(key, checkpoint shape, network shape)`` triples.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (),
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


class DatasetError(HRNetFastError, ValueError):
    """A file of a data set, or a row of it, cannot be used.

    Attributes:
        path: the file, "" if unknown. (A data loader's worker passes on the message alone.)
        row: the row, annotation or mask that is meant, "" for the whole file.
    """

    def __init__(self, message: str, *, path: str = "", row: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.row = row


class ImplementationError(HRNetFastError, RuntimeError):
    """An implementation that was named explicitly cannot run here."""


class TrainingError(HRNetFastError, RuntimeError):
    """A training run cannot go on: its loss or weights are not finite, or a process of it failed."""


class MissingPackageError(HRNetFastError, ImportError):
    """A plug-in was imported whose package is not installed; the message names what to install."""


def shown(value: object) -> str:
    """Return `value` for a message: its repr if that is one short line without an address, otherwise its type."""
    text = repr(value)
    plain = len(text) <= 60 and "\n" not in text and " object at 0x" not in text
    return text if plain else type(value).__name__


def some_of(names: Sequence[str], most: int = 6) -> str:
    """Return up to `most` names and the number of the others, for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
