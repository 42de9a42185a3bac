"""Inert records in place of a pickle's foreign objects, and the state_dict of a pickled module."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from hrnet_fast.errors import CheckpointError

# Limits for modules that contain themselves or share modules many times: their state_dict would not end.
DEEPEST, MOST_MODULES = 50, 100_000


@dataclass(frozen=True)
class Name:
    """The name of a class or function in a pickle, which is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert(dict[Any, Any]):
    """The record of an object in a pickle whose class is not imported.

    It is a mapping of the object's entries if its class derives from a dictionary (an ``OrderedDict`` subclass, a
    configuration). Equality and hash are by identity.

    Attributes:
        kind: the callable that would create it: a :class:`Name`, or another inert object.
        args: the arguments of that call; (arguments, keywords) for a call with keywords.
        state: the argument of ``__setstate__``, a dictionary of attributes for most classes, or None.
        elements: the elements if its class derives from a list or a set.
    """

    __slots__ = ("args", "elements", "kind", "state")
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, kind: Name | Inert, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.args = args
        self.state: Any = None
        self.elements: list[Any] = []

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __repr__(self) -> str:
        return str(self.kind) if isinstance(self.kind, Name) else "an object"


def refuse(why: str) -> NoReturn:
    """Raise the error of a pickle whose content contradicts itself."""
    raise pickle.UnpicklingError(why)


def module_state(module: Inert) -> dict[str, Any] | None:
    """Return the state_dict of a pickled ``torch.nn.Module``, or None if `module` is another object.

    Names and order are those of ``Module.state_dict()``: parameters, persistent buffers, then the modules inside.

    Raises:
        CheckpointError: a module contains itself, or a child that is no module.
    """
    if not _is_module(module):
        return None
    state: dict[str, Any] = {}
    visited = 0
    pending: list[tuple[tuple[str, ...], Inert]] = [((), module)]
    while pending:
        path, current = pending.pop()
        attributes = current.state
        transient = _elements(attributes.get("_non_persistent_buffers_set"))
        held = [*attributes["_parameters"].items()]
        held += [(name, value) for name, value in attributes["_buffers"].items() if name not in transient]
        state |= {".".join((*path, str(name))): value for name, value in held if isinstance(value, Tensor)}
        inner = [((*path, str(name)), m) for name, m in attributes["_modules"].items() if m is not None]
        visited += 1
        if len(path) > DEEPEST or visited > MOST_MODULES or not all(_is_module(m) for _, m in inner):
            raise CheckpointError(
                f"The pickled module {module} contains itself, or a child that is no module, at "
                f"{'.'.join(path)[:80]!r}. Save its state_dict() instead."
            )
        pending += reversed(inner)
    return state


def _elements(names: Any) -> Any:
    """Return the elements of a pickled set, which protocol 2 writes as a call of ``set`` with a list."""
    if isinstance(names, Inert) and len(names.args) == 1:
        (names,) = names.args
    return names if isinstance(names, (set, list)) else ()


def _is_module(value: Any) -> bool:
    groups = ("_parameters", "_buffers", "_modules")
    attributes = value.state if isinstance(value, Inert) else None
    return isinstance(attributes, dict) and all(isinstance(attributes.get(group), Mapping) for group in groups)
