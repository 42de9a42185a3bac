"""What was found out about a module's structure, kept for as long as that structure stays as it was.

Whether layers can be fused depends on classes, hooks and attributes, any of which may change between calls. To ask all
of them again takes longer than a small map's convolutions; to see that nothing changed does not. Only the structure is
kept, never a parameter, a buffer or a number: these are read at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from hrnet_fast.training.matching import hooked

T = TypeVar("T")
NAME = "fast_seen"  # of a module's attribute
# Read at every call, or (the last one) what stands here itself.
_APART = ("_parameters", "_buffers", NAME)


class CachedStructure:
    """The structure of modules at one time, and what was found out about it.

    A root and what is cached in it make no cycle: a model that nobody holds is freed at once.
    """

    def __init__(self, root: nn.Module, others: Iterable[nn.Module], value: Any) -> None:
        self.value = value
        self._root = weakref.ref(root)
        self._own = _State(root)
        self._others = [(m, _State(m)) for m in others]

    def holds(self, root: nn.Module) -> bool:
        """Whether nothing changed since, and this is that root: copies of its attributes stand in replicas too."""
        if self._root() is not root or hooked([]):
            return False
        try:
            return self._own.is_of(root) and all(then.is_of(m) for m, then in self._others)
        except Exception:  # attributes that cannot be compared count as changed
            return False


def cached(root: nn.Module, others: Callable[[], Iterable[nn.Module]], find: Callable[[], T]) -> T:
    """Return ``find()``, or what it returned when nothing was different.

    Args:
        root: where it is kept.
        others: all modules besides the root that it depends on.
    """
    seen = vars(root).get(NAME)
    if isinstance(seen, CachedStructure) and seen.holds(root):
        known: T = seen.value
        return known
    found = find()
    try:
        vars(root)[NAME] = CachedStructure(root, others(), found)
    except Exception:  # a module whose attributes cannot be copied (a scripted one): found out anew every time
        clear_cache(root)
    return found


def clear_cache(module: nn.Module) -> None:
    """Remove what is cached in a module."""
    vars(module).pop(NAME, None)


_CONTAINERS = (list, set, *{type(v) for v in vars(nn.Module()).values() if isinstance(v, dict)})


class _State:
    """Class, methods that tools replace at run time, and attributes, of which containers are copied."""

    def __init__(self, module: nn.Module) -> None:
        self._kind = type(module)
        self._methods = self._kind.forward, getattr(self._kind, "_conv_forward", None)
        own = vars(module).copy()  # at once: other threads may add to it
        self._attributes = {k: v.copy() if type(v) in _CONTAINERS else v for k, v in own.items() if k not in _APART}

    def is_of(self, module: nn.Module) -> bool:
        own, kind = vars(module), type(module)
        if kind is not self._kind or (kind.forward, getattr(kind, "_conv_forward", None)) != self._methods:
            return False
        if len(own) - sum(name in own for name in _APART) != len(self._attributes):
            return False
        return all(own[k] is v or own[k] == v for k, v in self._attributes.items())
