"""The exceptions this package raises on bad input. Each message says what was given, what is accepted and what to do.

They derive from the built-in exception that a caller would expect, so code that already catches
``ValueError`` or ``RuntimeError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Sequence


class HRNetFastError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(HRNetFastError, ValueError):
    """A network description that is contradictory or that no network can have."""


class InputError(HRNetFastError, ValueError):
    """An input tensor, image or file whose rank, size, type or content cannot be used."""


class CheckpointError(HRNetFastError, RuntimeError):
    """A checkpoint that cannot be read, recognised or loaded as a whole.

    Attributes:
        missing: canonical keys that the network needs and the checkpoint lacks.
        unexpected: keys of the checkpoint that the network has no place for.
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


class ImplementationError(HRNetFastError, RuntimeError):
    """An implementation that was asked for by name and cannot run here; nothing falls back silently."""


def shown(value: object) -> str:
    """A value as messages show it: its repr where that is short, on one line and no address, else its type."""
    text = repr(value)
    plain = len(text) <= 60 and "\n" not in text and " object at 0x" not in text
    return text if plain else type(value).__name__


def some_of(names: Sequence[str], most: int = 6) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
