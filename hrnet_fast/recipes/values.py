"""Values of dataclasses from YAML and ``--set``: conversion by annotation, unknown fields, near names."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from hrnet_fast.errors import ConfigError, shown

Part = TypeVar("Part")


def build(cls: type[Part], values: Any, path: str) -> Part:
    """Return a dataclass of a mapping; `path` is the mapping's place in a recipe, for messages.

    Raises:
        ConfigError: a field is unknown, missing or of another type.
    """
    return cls(**converted_fields(cls, values, path))


def converted_fields(cls: type, values: Any, path: str, *, need: bool = True) -> dict[str, Any]:
    """Return the mapping with values of the fields' types; without `need`, fields without default may be absent."""
    hints = typing.get_type_hints(cls)
    check_mapping(cls, values, path)
    lacking = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if lacking and need:
        raise ConfigError(f"{path or 'recipe'}: {', '.join(lacking)} missing; a recipe has to give it.")
    return {key: converted(value, hints[key], join(path, key)) for key, value in values.items()}


def convert_section(section: Any, path: str) -> None:
    """Convert all fields of a section to their types.

    Raises:
        ConfigError: a field has another type.
    """
    given = {name: getattr(section, name) for name in field_names(type(section))}
    for name, value in converted_fields(type(section), given, path).items():
        object.__setattr__(section, name, value)


def check_mapping(cls: type, values: Any, path: str) -> Mapping[str, Any]:
    """Return a mapping of fields of a dataclass.

    Raises:
        ConfigError: it is none, or a field is unknown.
    """
    names = field_names(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: {shown(values)} given; accepted is a mapping of {', '.join(names)}.")
    for key in values:
        if key not in names:
            raise unknown_name(path, key, names)
    return values


def field_names(cls: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return tuple(f.name for f in dataclasses.fields(cls))


def join(path: str, name: str) -> str:
    """Return the full name of a field."""
    return f"{path}.{name}" if path else name


def unknown_name(path: str, name: Any, accepted: Sequence[str]) -> ConfigError:
    """Return the error for a name that does not exist, with those that do and the nearest of them."""
    near = difflib.get_close_matches(str(name), accepted, n=1, cutoff=0.6)
    hint = f" Did you mean {join(path, near[0])}?" if near else ""
    return ConfigError(f"{join(path, str(name))} is no field; accepted are {', '.join(accepted) or 'none'}.{hint}")


def check_choice(path: str, value: Any, accepted: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of `accepted`."""
    accepted = list(accepted)
    if value not in accepted:
        near = difflib.get_close_matches(str(value), accepted, n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{path}={shown(value)}; accepted are {', '.join(map(repr, accepted))}.{hint}")


def check_range(
    path: str, value: float | None, least: float = -math.inf, most: float = math.inf, *, open_end: bool = False
) -> None:
    """Raise ConfigError unless `value` is None or within `least` and `most`; with `open_end`, below `most`."""
    if value is None or (least <= value <= most and not (open_end and value == most)):
        return
    text = f"numbers from {least:g}" if math.isfinite(least) else "numbers"
    if math.isfinite(most):
        text += f" to {'below ' if open_end else ''}{most:g}"
    raise ConfigError(f"{path}={value}; accepted are {text}.")


def check_above_zero(path: str, value: float | None) -> None:
    """Raise ConfigError unless `value` is None or above 0."""
    if value is not None and not value > 0:
        raise ConfigError(f"{path}={value}; accepted are numbers above 0.")


def converted(value: Any, hint: Any, path: str) -> Any:
    """Return `value` as the annotation `hint` says: lists as tuples, ``"1e-3"`` as a number (YAML 1.1 reads a string).

    Raises:
        ConfigError: it has another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        check_choice(path, value, arguments)
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path)  # type: ignore[arg-type]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={shown(value)}; accepted is a mapping.")
        return as_plain(value)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(value, arguments, path)
    return _scalar(value, hint, path)


def as_plain(value: Any) -> Any:
    """Return nested mappings and sequences as dictionaries, lists and scalars, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return value


def _one_of(value: Any, hints: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in hints:
        return None
    errors = []
    for hint in (h for h in hints if h is not type(None)):
        try:
            return converted(value, hint, path)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        text = str(errors[0])
        raise ConfigError(text[:-1] + ", or null." if type(None) in hints and text.startswith(f"{path}=") else text)
    accepted = ", ".join(sorted({_described(h) for h in hints}))
    raise ConfigError(f"{path}={shown(value)}; accepted are {accepted}.")


def _sequence(value: Any, hints: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ConfigError(f"{path}={shown(value)}; accepted is a list.")
    items = tuple(value)
    fixed = hints and hints[-1] is not Ellipsis and len(hints) > 1
    if fixed and len(items) != len(hints):
        raise ConfigError(f"{path}={shown(value)}; accepted is a list of {len(hints)} values.")
    each = hints if fixed else (hints[0] if hints else Any,) * len(items)
    return tuple(converted(item, hint, f"{path}[{i}]") for i, (item, hint) in enumerate(zip(items, each, strict=True)))


def _scalar(value: Any, hint: Any, path: str) -> Any:
    if hint is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{path}={shown(value)}; accepted is {_described(hint)}.") from None
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if hint is str and isinstance(value, bool):  # YAML 1.1 reads on and off as booleans
        value = "on" if value else "off"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number and math.isfinite(value):
        return float(value)
    if type(value) is not hint or hint is float:  # infinite or not a number
        raise ConfigError(f"{path}={shown(value)}; accepted is {_described(hint)}.")
    return value


def _described(hint: Any) -> str:
    names = {float: "a number", int: "an integer", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(hint, "a list" if typing.get_origin(hint) else getattr(hint, "__name__", str(hint)))
