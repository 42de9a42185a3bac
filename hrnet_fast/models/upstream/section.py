"""``Section``: a mapping of a configuration that reports the keys nobody read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrnet_fast.errors import ConfigError

_REQUIRED = object()


class Section:
    """A mapping that records which of its keys were read.

    Each key is read, declared to have no effect on the network, or reported by :meth:`close`.

    Args:
        values: the section.
        path: its key path in the configuration, for messages; empty for the whole.
        caller: the function that reads it, for messages.
    """

    def __init__(self, values: Any, path: str = "", caller: str = "from_config") -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{caller}: the configuration mistypes {path}: {values!r} given; a mapping belongs there."
            )
        self.values: Mapping[str, Any] = values
        self.path = path
        self.caller = caller
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
            raise ConfigError(f"{self.caller}: the configuration lacks {self.name(key)}.")
        return value

    def section(self, key: str, default: Any = _REQUIRED) -> Section:
        """Return a nested section, which the caller closes."""
        return Section(self.get(key, default), self.name(key), self.caller)

    def expect(self, key: str, *accepted: Any, default: Any = _REQUIRED) -> Any:
        """Return a value after checking that it is one of `accepted`.

        An absent key has the value `default`, which must be accepted too; without a `default`, absence is accepted.

        Raises:
            ConfigError: the value is another one; the message names key, value and accepted values.
        """
        value = _lists_as_tuples(self.get(key, accepted[0] if default is _REQUIRED else default))
        if value not in accepted:
            given = repr(value) if key in self.values else f"{value!r}, its upstream's default"
            builds = "builds" if self.caller == "from_config" else "has"
            raise ConfigError(
                f"{self.caller}: {self.name(key)} is {given}; this package {builds} {' or '.join(map(repr, accepted))}."
            )
        return value

    def no_effect(self, *keys: str) -> None:
        """Declare keys that change nothing here; of a network: losses, targets, initial weights, memory use."""
        self._seen.update(keys)

    def close(self) -> None:
        """Check that every key was read or declared.

        Raises:
            ConfigError: other keys exist; the message lists them.
        """
        unknown = [self.name(str(key)) for key in self.values if key not in self._seen]
        if unknown:
            what = "network" if self.caller == "from_config" else "training"
            raise ConfigError(
                f"{self.caller}: {', '.join(unknown)}: not known to this package, and a setting that may change the "
                f"{what} is not ignored. Remove it if it has no effect there."
            )


def _lists_as_tuples(value: Any) -> Any:
    """Return a list as a tuple, so that values of yaml and Python compare equal."""
    return tuple(value) if isinstance(value, list) else value
