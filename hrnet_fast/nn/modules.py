"""The classes that accelerated modules take on in place of their own; attributes, keys and signatures stay.

A class here is mixed into a module's own (``class Fast(FastSequence, nn.Sequential)``), so ``isinstance`` still holds
and ``super().forward`` is the plain path. Each call goes by the layers as they are then, and says in ``fast_note`` why
it took the plain path, if it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from hrnet_fast.nn import seen
from hrnet_fast.nn.chain import Unit
from hrnet_fast.nn.units import (
    Layers,
    call_fault,
    flat,
    hooked,
    looks_like_unit,
    row_fault,
    run_units,
    unit_fault,
    unit_layers,
)


@dataclass(frozen=True)
class Settings:
    """How an accelerated module executes.

    Attributes:
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        memory: ``"lean"`` or ``"min"``.
        mode, align_corners: of a fusion's upsampling.
        exact_scale: whether maps must fit their targets by a power of two.
    """

    impl: str = "auto"
    memory: str = "lean"
    mode: str = "nearest"
    align_corners: bool = False
    exact_scale: bool = False

    @property
    def minimal(self) -> bool:
        return self.memory == "min"


class Fast(nn.Module):
    """What all of them share. ``fast_base`` is the class that the module had."""

    fast_settings: Settings
    fast_note: str | None
    fast_base: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Classes made at run time cannot be found by name: they are made again from the two they consist of.
        kind = next(c for c in type(self).__mro__ if Fast in c.__bases__)
        return _remake, (kind, self.fast_base), {k: v for k, v in vars(self).items() if k != seen.NAME}

    def _inner(self) -> list[nn.Module]:
        """All modules inside, whatever part of them is read."""
        return list(self.modules())[1:]

    def _plain(self, note: str, *args: Any, **kwargs: Any) -> Any:
        self.fast_note = note
        return self.fast_base.forward(self, *args, **kwargs)

    def why_plain(self) -> list[str]:
        """Reasons for which parts of this module take the plain path as it stands now; empty if none does."""
        raise NotImplementedError

    def partly_fast(self) -> bool:
        """Whether some of it takes the fused path in spite of these reasons."""
        return False


class FastUnit(Fast):
    """One residual unit."""

    def why_plain(self) -> list[str]:
        reason = unit_fault(self)
        return [reason] if reason else []

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        note = call_fault(x, self.fast_settings.impl)
        if args or kwargs:
            note = "called with more than the input"
        layers = note or seen.remembered(self, self._inner, lambda: unit_fault(self) or unit_layers(self))
        if not isinstance(layers, str):
            done = run_units([layers.read()], x, self.fast_settings.impl, self.fast_settings.minimal)
            if not isinstance(done, str):
                self.fast_note = None
                return done
            layers = done
        return self._plain(layers, x, *args, **kwargs)


class Part(NamedTuple):
    """Layers of a sequence that execute together: what they are, or why they cannot be fused."""

    modules: list[nn.Module]
    layers: Layers | str


class FastSequence(Fast):
    """A row of residual units, or of convolutions with normalisation and ReLU; other layers run between as they are."""

    def parts(self) -> list[Part]:
        """The layers in groups that execute together."""
        return seen.remembered(self, self._inner, self._find_parts)

    def _find_parts(self) -> list[Part]:
        assert isinstance(self, nn.Sequential)
        layers = list(flat(self))
        found: list[Part] = []
        k = 0
        while k < len(layers):
            if looks_like_unit(layers[k]):
                reason = vars(layers[k]).get("fast_refused") or unit_fault(layers[k]) or hooked([layers[k]])
                found.append(Part([layers[k]], reason or unit_layers(layers[k])))
                k += 1
                continue
            row = layers[k : k + 3]
            if len(row) == 3 and row_fault(*row) is None:
                found.append(Part(row, Layers(((row[0], row[1]),), None)))
                k += 3
                continue
            found.append(Part([layers[k]], f"{type(layers[k]).__name__} stands outside of a fusible row"))
            k += 1
        return found

    def why_plain(self) -> list[str]:
        return list(dict.fromkeys(part.layers for part in self.parts() if isinstance(part.layers, str)))

    def partly_fast(self) -> bool:
        return any(isinstance(part.layers, Layers) for part in self.parts()) and not self.fast_note

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(self, nn.Sequential)
        found = nn.Sequential.__getitem__(self, index)
        if isinstance(index, slice) and isinstance(found, FastSequence):  # made by this class: it executes alike
            vars(found).update(fast_settings=self.fast_settings, fast_note=None)
        return found

    def forward(self, input: Tensor) -> Any:  # nn.Sequential's own name for it
        note = call_fault(input, self.fast_settings.impl)
        if note is not None:
            return self._plain(note, input)
        x, pending, notes = input, list[nn.Module](), list[str]()
        units: list[Unit] = []
        for modules, layers in [*self.parts(), Part([], "")]:
            # A unit that stands in two places moves its statistics twice, one after the other.
            if units and (isinstance(layers, str) or any(modules[0] is other for other in pending)):
                done = run_units(units, x, self.fast_settings.impl, self.fast_settings.minimal)
                if isinstance(done, str):
                    notes.append(done)
                    for module in pending:
                        x = module(x)
                else:
                    x = done
                units, pending = [], []
            if not isinstance(layers, str):
                units.append(layers.read())
                pending += modules
                continue
            for module in modules:
                x = module(x)
        self.fast_note = "; ".join(dict.fromkeys(notes)) or None
        return x


_classes: dict[tuple[type[Fast], type[nn.Module]], type[Fast]] = {}


def fast_class(kind: type[Fast], base: type[nn.Module]) -> type[Fast]:
    """`kind` over `base`, under the base's name; one class for each pair."""
    if (kind, base) not in _classes:
        members = {"fast_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _classes[kind, base] = type(base.__name__, (kind, base), members)
    return _classes[kind, base]


def _remake(kind: type[Fast], base: type[nn.Module]) -> nn.Module:
    made = fast_class(kind, base)
    module: nn.Module = made.__new__(made)
    return module
