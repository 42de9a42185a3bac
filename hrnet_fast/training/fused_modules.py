"""The classes that accelerated modules take on in place of their own; attributes, keys and signatures stay.

A class here is mixed into a module's own (``class X(FusedSequence, nn.Sequential)``), so ``isinstance`` still holds
and ``super().forward`` is the plain path. Each call reads the layers as they are at that time.
``last_call_reason`` says why the last call took the plain path; None if it did not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from hrnet_fast.training import structure_cache
from hrnet_fast.training.matching import (
    Layers,
    call_unsupported_reason,
    conv_norm_relu_unsupported_reason,
    flat,
    hooked,
    looks_like_unit,
    run_units,
    unit_layers,
    unit_unsupported_reason,
)
from hrnet_fast.training.residual_chain import Unit


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


class FusedModule(nn.Module):
    """What all of them share. ``unfused_class`` is the class that the module had."""

    fused_settings: Settings
    last_call_reason: str | None
    unfused_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Classes made at run time cannot be found by name: they are made again from the two they consist of.
        kind = next(c for c in type(self).__mro__ if FusedModule in c.__bases__)
        return _remake, (kind, self.unfused_class), {k: v for k, v in vars(self).items() if k != structure_cache.NAME}

    def _inner(self) -> list[nn.Module]:
        """All modules inside, whatever part of them is read."""
        return list(self.modules())[1:]

    def _plain(self, note: str, *args: Any, **kwargs: Any) -> Any:
        self.last_call_reason = note
        return self.unfused_class.forward(self, *args, **kwargs)

    def unsupported_reasons(self) -> list[str]:
        """Reasons for which parts of this module take the plain path as it stands now; empty if none does."""
        raise NotImplementedError

    def partly_fused(self) -> bool:
        """Whether some of it takes the fused path in spite of these reasons."""
        return False


class FusedUnit(FusedModule):
    """One residual unit."""

    def unsupported_reasons(self) -> list[str]:
        reason = unit_unsupported_reason(self)
        return [reason] if reason else []

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        note = call_unsupported_reason(x, self.fused_settings.impl)
        if args or kwargs:
            note = "called with more than the input"
        layers = note or structure_cache.cached(
            self, self._inner, lambda: unit_unsupported_reason(self) or unit_layers(self)
        )
        if not isinstance(layers, str):
            done = run_units([layers.read()], x, self.fused_settings.impl, self.fused_settings.minimal)
            if not isinstance(done, str):
                self.last_call_reason = None
                return done
            layers = done
        return self._plain(layers, x, *args, **kwargs)


class SequencePart(NamedTuple):
    """Layers of a sequence that execute together: what they are, or why they cannot be fused."""

    modules: list[nn.Module]
    layers: Layers | str


class FusedSequence(FusedModule):
    """A row of residual units, or of convolutions with normalisation and ReLU; other layers run between as they are."""

    def parts(self) -> list[SequencePart]:
        """The layers in groups that execute together."""
        return structure_cache.cached(self, self._inner, self._find_parts)

    def _find_parts(self) -> list[SequencePart]:
        assert isinstance(self, nn.Sequential)
        layers = list(flat(self))
        found: list[SequencePart] = []
        k = 0
        while k < len(layers):
            if looks_like_unit(layers[k]):
                reason = (
                    vars(layers[k]).get("fused_unsupported_reason")
                    or unit_unsupported_reason(layers[k])
                    or hooked([layers[k]])
                )
                found.append(SequencePart([layers[k]], reason or unit_layers(layers[k])))
                k += 1
                continue
            row = layers[k : k + 3]
            if len(row) == 3 and conv_norm_relu_unsupported_reason(*row) is None:
                found.append(SequencePart(row, Layers(((row[0], row[1]),), None)))
                k += 3
                continue
            found.append(SequencePart([layers[k]], f"{type(layers[k]).__name__} stands outside of a fusible row"))
            k += 1
        return found

    def unsupported_reasons(self) -> list[str]:
        return list(dict.fromkeys(part.layers for part in self.parts() if isinstance(part.layers, str)))

    def partly_fused(self) -> bool:
        return any(isinstance(part.layers, Layers) for part in self.parts()) and not self.last_call_reason

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(self, nn.Sequential)
        found = nn.Sequential.__getitem__(self, index)
        if isinstance(index, slice) and isinstance(found, FusedSequence):  # made by this class: it executes alike
            vars(found).update(fused_settings=self.fused_settings, last_call_reason=None)
        return found

    def forward(self, input: Tensor) -> Any:  # nn.Sequential's own name for it
        note = call_unsupported_reason(input, self.fused_settings.impl)
        if note is not None:
            return self._plain(note, input)
        x, pending, notes = input, list[nn.Module](), list[str]()
        units: list[Unit] = []
        for modules, layers in [*self.parts(), SequencePart([], "")]:
            # A unit that stands in two places moves its statistics twice, one after the other.
            if units and (isinstance(layers, str) or any(modules[0] is other for other in pending)):
                done = run_units(units, x, self.fused_settings.impl, self.fused_settings.minimal)
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
        self.last_call_reason = "; ".join(dict.fromkeys(notes)) or None
        return x


_classes: dict[tuple[type[FusedModule], type[nn.Module]], type[FusedModule]] = {}


def fused_class(kind: type[FusedModule], base: type[nn.Module]) -> type[FusedModule]:
    """`kind` over `base`, under the base's name; one class for each pair."""
    if (kind, base) not in _classes:
        members = {"unfused_class": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _classes[kind, base] = type(base.__name__, (kind, base), members)
    return _classes[kind, base]


def _remake(kind: type[FusedModule], base: type[nn.Module]) -> nn.Module:
    made = fused_class(kind, base)
    module: nn.Module = made.__new__(made)
    return module
