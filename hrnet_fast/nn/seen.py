"""What was read of a module, kept for as long as everything that it was read from stays as it was.

Accelerated modules follow whatever is done to their layers between calls: hooks, frozen or replaced parts, other
parameters. To read them anew takes longer than a small map's convolutions; to see that nothing changed does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from hrnet_fast.nn.chain import Step
from hrnet_fast.nn.norms import lasts
from hrnet_fast.nn.units import hooked

T = TypeVar("T")
NAME = "fast_seen"  # of a module's attribute


class Seen:
    """The state of modules at one time, and what was read of them then."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._states = [(m, type(m), _class_state(type(m)), _tensors(m), _attributes(m)) for m in modules]
        self.value: Any = None

    def holds(self) -> bool:
        """Whether nothing changed since. Values that cannot be compared count as changed."""
        if hooked([]):
            return False
        try:
            for module, kind, of_class, tensors, attributes in self._states:
                own = vars(module)
                if type(module) is not kind or _class_state(kind) != of_class:
                    return False
                for place, name, tensor in tensors:  # by identity, and before attributes, which are compared by value
                    if own[place].get(name) is not tensor:
                        return False
                if own != attributes:
                    return False
        except Exception:
            return False
        return True

    def include(self, root: nn.Module) -> None:
        """Stand in the root's attributes, and in what is known of them."""
        vars(root)[NAME] = self
        self._states[0][-1][NAME] = self

    def covers(self, steps: Sequence[Step]) -> bool:
        """Whether these steps' tensors are parameters and buffers: others (parametrized ones) are new at every call."""
        known = {id(tensor) for *_, tensors, _ in self._states for _, _, tensor in tensors}
        used = [t for s in steps for t in (s.weight, s.bias, s.norm.counter, *s.norm.norm)]
        return all(id(t) in known for t in used if isinstance(t, Tensor))


def remembered(
    root: nn.Module,
    parts: Callable[[], Iterable[nn.Module]],
    read: Callable[[], T],
    steps: Callable[[T], Sequence[Step]],
) -> T:
    """Return ``read()``, or what it returned when nothing was different.

    Args:
        root: where it is kept.
        parts: all modules besides it that are read.
        steps: those in a reading.
    """
    seen = vars(root).get(NAME)
    if isinstance(seen, Seen) and seen.holds():
        known: T = seen.value
        return known
    forget(root)
    others = list(parts())
    found = read()
    if all(map(lasts, others)):
        seen = Seen([root, *others])
        if seen.covers(steps(found)):
            seen.value = found
            seen.include(root)
    return found


def forget(module: nn.Module) -> None:
    """Remove what is remembered in a module."""
    vars(module).pop(NAME, None)


def _class_state(kind: type[nn.Module]) -> tuple[Any, ...]:
    """What of a class decides how its modules compute: tools replace it at run time."""
    return kind.forward, getattr(kind, "_conv_forward", None)


def _tensors(module: nn.Module) -> list[tuple[str, str, Tensor | None]]:
    own = vars(module)
    return [(place, name, tensor) for place in ("_parameters", "_buffers") for name, tensor in own[place].items()]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, with copies of containers that may change in place."""
    kinds = (dict, list, set)
    return {k: v.copy() if isinstance(v, kinds) else v for k, v in vars(module).items() if k != NAME}
