"""A cache of what a module's structure allows, valid for as long as the structure is unchanged.

Whether layers can be fused depends on classes, hooks and attributes, any of which may change between calls. Examining
all of them takes longer than a small map's convolutions; comparing them with a copy does not. Parameters and buffers
are read at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from hrnet_fast.ops.primitives import load_compiled
from hrnet_fast.training.matching import hooked

T = TypeVar("T")
# Attributes of a module that hold its caches: of its own structure, and of sequences in it that execute as one.
NAME, JOINED = NAMES = ("fused_structure", "fused_joined")
# Attributes that are read at every call, or written by execution itself.
APART = ("_parameters", "_buffers", "last_call_reason", *NAMES)


class CachedStructure:
    """The structure of modules at one time, and the value that was derived from it.

    The root is referenced weakly: the cache in its attribute makes no cycle, and an unused model is freed at once.
    """

    def __init__(self, root: nn.Module, others: Iterable[nn.Module], value: Any) -> None:
        self.value = value
        self._root = weakref.ref(root)
        extension = load_compiled()
        self._states = _ModuleStates(root, others) if extension is None else extension.ModuleStates(root, others, APART)

    def is_valid(self, root: nn.Module) -> bool:
        """Whether nothing changed since, and `root` is the module itself: replicas have copies of its attributes."""
        if self._root() is not root or hooked([]):
            return False
        try:
            return bool(self._states.unchanged(root))
        except Exception:  # attributes that cannot be compared count as changed
            return False


def cached(root: nn.Module, others: Callable[[], Iterable[nn.Module]], find: Callable[[], T], name: str = NAME) -> T:
    """Return ``find()``, or its cached result while the structure is unchanged.

    Args:
        root: the module that holds the cache.
        others: all modules besides the root that the result depends on.
        name: of :data:`NAMES`.
    """
    entry = vars(root).get(name)
    if isinstance(entry, CachedStructure) and entry.is_valid(root):
        known: T = entry.value
        return known
    found = find()
    try:
        for one in NAMES:  # first, so that the state has the attributes at their places
            vars(root).setdefault(one, None)
        vars(root)[name] = CachedStructure(root, others(), found)
    except Exception:  # a module whose attributes cannot be copied (a scripted one) are examined at every call
        clear_cache(root)
    return found


def clear_cache(module: nn.Module) -> None:
    """Remove what is cached in a module."""
    for name in NAMES:
        vars(module).pop(name, None)


_CONTAINERS = (list, set, *{type(v) for v in vars(nn.Module()).values() if isinstance(v, dict)})


class _ModuleState:
    """A module's class, methods that tools replace at run time, and attributes, of which containers are copied."""

    def __init__(self, module: nn.Module) -> None:
        self._kind = type(module)
        self._methods = self._kind.forward, getattr(self._kind, "_conv_forward", None)
        own = vars(module).copy()  # at once: other threads may add to it
        self._attributes = {k: v.copy() if type(v) in _CONTAINERS else v for k, v in own.items() if k not in APART}

    def matches(self, module: nn.Module) -> bool:
        own, kind = vars(module), type(module)
        if kind is not self._kind or (kind.forward, getattr(kind, "_conv_forward", None)) != self._methods:
            return False
        if len(own) - sum(name in own for name in APART) != len(self._attributes):
            return False
        return all(own[k] is v or own[k] == v for k, v in self._attributes.items())


class _ModuleStates:
    """The states of several modules, as the compiled extension's ``ModuleStates`` has them."""

    def __init__(self, root: nn.Module, others: Iterable[nn.Module]) -> None:
        self._own = _ModuleState(root)
        self._others = [(m, _ModuleState(m)) for m in others]

    def unchanged(self, root: nn.Module) -> bool:
        return self._own.matches(root) and all(state.matches(m) for m, state in self._others)
