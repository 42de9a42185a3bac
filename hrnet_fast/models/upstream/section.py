"""One section of an upstream's configuration, of which no key is passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.errors import ConfigError

_REQUIRED = object()


class Section:
    """A mapping that remembers which of its keys were read.

    Every key is read, declared to have no effect on the network, or reported by :meth:`close`.

    Args:
        values: the section.
        path: where it stands in the configuration, for messages; empty for the whole.
    """

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"from_config: the configuration mistypes {path}: {values!r} given; a mapping belongs there."
            )
        self.values: Mapping[str, Any] = values
        self.path = path
        self._seen: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def name(self, key: str) -> str:
        """The full name of a key, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a value, or `default` where the key is absent.

        Raises:
            ConfigError: the key is absent and has no default.
        """
        self._seen.add(key)
        value = self.values.get(key, default)
        if value is _REQUIRED:
            raise ConfigError(f"from_config: the configuration lacks {self.name(key)}.")
        return value

    def section(self, key: str, default: Any = _REQUIRED) -> Section:
        """Return a value that is a section of its own; the caller closes it."""
        return Section(self.get(key, default), self.name(key))

    def expect(self, key: str, *accepted: Any, default: Any = _REQUIRED) -> Any:
        """Return a value that only a few settings of can be built.

        An absent key is its upstream's `default`, which has to be accepted too; without one, absence is accepted.

        Raises:
            ConfigError: another value; the message names key, value and what is accepted.
        """
        value = _lists_as_tuples(self.get(key, accepted[0] if default is _REQUIRED else default))
        if value not in accepted:
            given = repr(value) if key in self.values else f"{value!r}, its upstream's default"
            raise ConfigError(
                f"from_config: {self.name(key)} is {given}; this package builds {' or '.join(map(repr, accepted))}."
            )
        return value

    def no_effect(self, *keys: str) -> None:
        """Declare keys that do not change the network: losses, targets, weights to start from, memory."""
        self._seen.update(keys)

    def close(self) -> None:
        """Report the keys that nobody asked for.

        Raises:
            ConfigError: there are any.
        """
        unknown = [self.name(str(key)) for key in self.values if key not in self._seen]
        if unknown:
            raise ConfigError(
                f"from_config: {', '.join(unknown)}: not known to this package, and a setting that may change the "
                "network is not ignored. Remove it if it has no effect there."
            )


def _lists_as_tuples(value: Any) -> Any:
    """Lists and tuples alike, so that yaml's and Python's compare."""
    return tuple(value) if isinstance(value, list) else value
