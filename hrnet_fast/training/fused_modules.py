"""The classes that accelerated modules take on in place of their own; attributes, keys and signatures stay.

A class here is mixed into a module's own (``class X(FusedSequence, nn.Sequential)``), so ``isinstance`` still holds
and ``super().forward`` is the plain path. Each call reads the layers as they are at that time.
``last_call_reason`` says why the last call took the plain path; None if it did not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from hrnet_fast.implementations import RequestedImplementation
from hrnet_fast.training import compiled, structure_cache, unsupported
from hrnet_fast.training.batch_norm import promotes, synchronised
from hrnet_fast.training.matching import Layers, flat, hooked, looks_like_unit, unit_layers
from hrnet_fast.training.residual_chain import run_units


class ChainLayers:
    """The modules of supported units in a row, and their compiled chain where there is one.

    Args:
        units: the units' layers.
        checkpointed: whether the units are to run again in backward by their own flags, as they do without fusion.
    """

    def __init__(self, *units: Layers, checkpointed: bool = False) -> None:
        self.units = units
        self.checkpointed = checkpointed
        self.compiled = compiled.compile_chain(units)
        pairs = [pair for unit in units for pair in (*unit.pairs, unit.shortcut) if isinstance(pair, tuple)]
        self.promotes = any(promotes(norm) for _, norm in pairs)
        self.synchronised = synchronised(norm for _, norm in pairs)


@dataclass(frozen=True)
class Settings:
    """How an accelerated module executes.

    Attributes:
        implementation: of the elementwise passes and sums, as it was requested.
        memory: ``"fast"``, ``"lean"`` or ``"min"``.
        checkpointing: ``"keep"`` or ``"replace"``: of units that checkpoint themselves.
        mode, align_corners: of a fusion's upsampling.
        exact_scale: whether maps must fit their targets by a power of two.
    """

    implementation: RequestedImplementation
    memory: str = "lean"
    checkpointing: str = "keep"
    mode: str = "nearest"
    align_corners: bool = False
    exact_scale: bool = False

    def run(self, chain: ChainLayers, x: Tensor) -> Tensor | str:
        """Run a chain on `x`, or say why this call cannot."""
        reason = unsupported.promotion(x) if chain.promotes else None
        if reason is not None:
            return reason
        operators, memory = self.implementation.operators(x), self.memory_of(chain)
        if chain.compiled is not None and compiled.has_compiled_passes(operators, chain.synchronised):
            outs = compiled.run_chains(chain.compiled.read(), [x], memory)
            return outs if isinstance(outs, str) else outs[0]
        return run_units([unit.read() for unit in chain.units], x, operators, memory)

    def memory_of(self, chain: ChainLayers) -> str:
        """Return what a chain keeps: that of units with checkpointing flags no more than without fusion."""
        return "min" if chain.checkpointed else self.memory


class Refusal(str):
    """Why a module keeps its own forward, in its attribute ``fused_unsupported_reason``; None in a pickle."""

    def __deepcopy__(self, memo: Any) -> Refusal:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(None), ()


# The attributes that accelerating adds to modules.
ADDED = {"fused_settings", "last_call_reason", "fused_unsupported_reason", *structure_cache.NAMES}


class FusedModule(nn.Module):
    """The base of all of them. ``unfused_class`` is the class that the module had."""

    fused_settings: Settings
    last_call_reason: str | None
    unfused_class: type[nn.Module]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own = getattr(self.unfused_class, "__deepcopy__", None)
        return own(self, memo) if own is not None else _twin(self, type(self), memo)

    def __copy__(self) -> Any:
        return _twin(self, type(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the class that the module had, which whoever reads the file has."""
        # Of protocol 1, which any pickler accepts: for later ones the reduction has to name the object's own class.
        return _twin(self, self.unfused_class).__reduce_ex__(1)

    def _inner(self) -> list[nn.Module]:
        """Return all modules whose structure decides how this one executes."""
        return list(self.modules())[1:]

    def note_call(self, reason: str | None) -> None:
        """Keep why a call took the plain path, or None. A module's attributes are slow to set, and few calls differ."""
        if self.last_call_reason != reason:
            self.last_call_reason = reason

    def _plain(self, reason: str, *args: Any, **kwargs: Any) -> Any:
        self.note_call(reason)
        return self.unfused_class.forward(self, *args, **kwargs)

    def unsupported_reasons(self) -> list[str]:
        """Reasons for which parts of this module take the plain path as it stands now; empty if none does."""
        raise NotImplementedError

    def partly_fused(self) -> bool:
        """Whether some of it takes the fused path in spite of these reasons."""
        return False


def unit_chain(unit: nn.Module) -> ChainLayers:
    """Return the chain of one supported unit."""
    return ChainLayers(unit_layers(unit), checkpointed=unsupported.checkpoint_flag(unit) is not None)


class FusedUnit(FusedModule):
    """One residual unit."""

    def unsupported_reasons(self) -> list[str]:
        reason = unsupported.unit(self, self.fused_settings.checkpointing)
        return [reason] if reason else []

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        reason = unsupported.call((x,), self.fused_settings.implementation)
        if args or kwargs:
            reason = "called with more than the input"
        chain = reason or structure_cache.cached(
            self, self._inner, lambda: next(iter(self.unsupported_reasons()), None) or unit_chain(self)
        )
        out = chain if isinstance(chain, str) else self.fused_settings.run(chain, x)
        if isinstance(out, str):
            return self._plain(out, x, *args, **kwargs)
        self.note_call(None)
        return out


class SequencePart(NamedTuple):
    """Modules of a sequence that execute together: their chain, or why they cannot be fused."""

    modules: list[nn.Module]
    chain: ChainLayers | str


class FusedSequence(FusedModule):
    """A row of residual units, or of convolutions with normalisation and ReLU; other layers run plainly."""

    def parts(self) -> list[SequencePart]:
        """The modules in groups that execute together."""
        return structure_cache.cached(self, self._inner, self._find_parts)

    def _find_parts(self) -> list[SequencePart]:
        assert isinstance(self, nn.Sequential)
        found: list[SequencePart] = []
        modules, units, flags = list[nn.Module](), list[Layers](), {False}
        for own, layers in [*_find_units(list(flat(self)), self.fused_settings.checkpointing), ([], "")]:
            flag = {unsupported.checkpoint_flag(m) is not None for m in own}
            # A module that is in two places moves its statistics twice, one after the other.
            if units and (isinstance(layers, str) or flag != flags or any(own[0] is other for other in modules)):
                found.append(SequencePart(modules, ChainLayers(*units, checkpointed=True in flags)))
                modules, units = [], []
            if not isinstance(layers, str):
                modules, units, flags = [*modules, *own], [*units, layers], flag
            elif own:
                found.append(SequencePart(own, layers))
        return found

    def unsupported_reasons(self) -> list[str]:
        if "forward" in vars(self):
            return ["its forward was replaced"]
        return list(dict.fromkeys(part.chain for part in self.parts() if isinstance(part.chain, str)))

    def partly_fused(self) -> bool:
        if "forward" in vars(self):
            return False
        return any(isinstance(part.chain, ChainLayers) for part in self.parts()) and not self.last_call_reason

    def __getitem__(self, index: Any) -> Any:
        assert isinstance(self, nn.Sequential)
        found = nn.Sequential.__getitem__(self, index)
        if isinstance(index, slice) and isinstance(found, FusedSequence):  # made by this class: it executes fused too
            vars(found).update(fused_settings=self.fused_settings, last_call_reason=None)
        return found

    def forward(self, input: Tensor) -> Any:  # nn.Sequential's own name for it
        reason = unsupported.call((input,), self.fused_settings.implementation)
        if reason is not None:
            return self._plain(reason, input)
        x, reasons = input, list[str]()
        for modules, chain in self.parts():
            out = chain if isinstance(chain, str) else self.fused_settings.run(chain, x)
            if not isinstance(out, str):
                x = out
                continue
            if out is not chain:
                reasons.append(out)
            for module in modules:
                x = module(x)
        self.note_call("; ".join(dict.fromkeys(reasons)) or None)
        return x


def _find_units(modules: list[nn.Module], checkpointing: str) -> Iterator[tuple[list[nn.Module], Layers | str]]:
    """Yield units and rows of convolution, normalisation and ReLU with their layers; others with the reason."""
    k = 0
    while k < len(modules):
        module, row = modules[k], modules[k : k + 3]
        if looks_like_unit(module):
            reason = vars(module).get("fused_unsupported_reason") or unsupported.unit(module, checkpointing)
            reason = reason or hooked([module])
            yield [module], reason or unit_layers(module)
        elif len(row) == 3 and unsupported.conv_norm_relu(*row) is None:
            yield row, Layers(((row[0], row[1]),), None)
            k += 2
        else:
            yield [module], f"{type(module).__name__} stands outside of a fusible row"
        k += 1


_classes: dict[tuple[type[FusedModule], type[nn.Module]], type[FusedModule]] = {}


def fused_class(kind: type[FusedModule], base: type[nn.Module]) -> type[FusedModule]:
    """Return the class that mixes `kind` into `base`, under the base's name; one for each pair."""
    if (kind, base) not in _classes:
        members = {"unfused_class": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _classes[kind, base] = type(base.__name__, (kind, base), members)
    return _classes[kind, base]


def _twin(module: FusedModule, kind: type[nn.Module], memo: dict[int, Any] | None = None) -> nn.Module:
    """Return another module of class `kind` with the attributes of `module`; deep copies of them if `memo` is given.

    A `kind` that is not fused gets none of what accelerating added.
    """
    twin: nn.Module = kind.__new__(kind)
    added = set(structure_cache.NAMES) if issubclass(kind, FusedModule) else ADDED
    state = {k: v for k, v in vars(module).items() if k not in added}
    if memo is None:
        vars(twin).update(state)
    else:
        memo[id(module)] = twin
        twin.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
    return twin
