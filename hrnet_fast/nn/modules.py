"""The classes that accelerated modules take on in place of their own; attributes, keys and signatures stay.

A class here is mixed into a module's own (``class Fast(FastSequence, nn.Sequential)``), so ``isinstance`` still holds
and ``super().forward`` is the plain path. Each call reads the layers anew and says in ``fast_note`` why it took the
plain path, if it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hrnet_fast.nn.chain import Step, Unit
from hrnet_fast.nn.fusion import run_fusion
from hrnet_fast.nn.fusion_plan import Term, plan_fusion
from hrnet_fast.nn.norms import alike
from hrnet_fast.nn.units import (
    autocast_dtype,
    call_fault,
    flat,
    hooked,
    looks_like_unit,
    pair_fault,
    read_row,
    read_unit,
    row_fault,
    run_units,
    unit_fault,
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
        kind = next(c for c in type(self).__mro__ if c in KINDS)
        return _remake, (kind, self.fast_base), vars(self).copy()

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
        note = call_fault(x, self.fast_settings.impl) or unit_fault(self)
        if args or kwargs:
            note = "called with more than the input"
        if note is None:
            done = run_units([read_unit(self)], x, self.fast_settings.impl, self.fast_settings.minimal)
            if not isinstance(done, str):
                self.fast_note = None
                return done
            note = done
        return self._plain(note, x, *args, **kwargs)


class FastSequence(Fast):
    """A row of residual units, or of convolutions with normalisation and ReLU; other layers run between as they are."""

    def parts(self) -> list[tuple[list[nn.Module], str | None]]:
        """The layers in groups that execute together, each with the reason why it cannot be fused, or None."""
        assert isinstance(self, nn.Sequential)
        layers = list(flat(self))
        found: list[tuple[list[nn.Module], str | None]] = []
        k = 0
        while k < len(layers):
            if looks_like_unit(layers[k]):
                reason = vars(layers[k]).get("fast_refused") or unit_fault(layers[k]) or hooked([layers[k]])
                found.append(([layers[k]], reason))
                k += 1
                continue
            row = layers[k : k + 3]
            if len(row) == 3 and row_fault(*row) is None:
                found.append((row, None))
                k += 3
                continue
            found.append(([layers[k]], f"{type(layers[k]).__name__} stands outside of a fusible row"))
            k += 1
        return found

    def why_plain(self) -> list[str]:
        return list(dict.fromkeys(reason for _, reason in self.parts() if reason))

    def partly_fast(self) -> bool:
        return any(reason is None for _, reason in self.parts()) and not self.fast_note

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
        for layers, reason in [*self.parts(), ([], "")]:
            # A unit that stands in two places moves its statistics twice, one after the other.
            if units and (reason is not None or any(layers[0] is other for other in pending)):
                done = run_units(units, x, self.fast_settings.impl, self.fast_settings.minimal)
                if isinstance(done, str):
                    notes.append(done)
                    for layer in pending:
                        x = layer(x)
                else:
                    x = done
                units, pending = [], []
            if reason is None:
                units.append(read_unit(layers[0]) if len(layers) == 1 else read_row(layers[0], layers[1]))
                pending += layers
                continue
            for layer in layers:
                x = layer(x)
        self.fast_note = "; ".join(dict.fromkeys(notes)) or None
        return x


class FastFusion(Fast):
    """A modularized block: its branches run as they are (accelerated on their own), its fusion stacked."""

    def rows(self) -> list[nn.ModuleList]:
        found: Any = self.fuse_layers
        return list(found)

    def why_plain(self) -> list[str]:
        if "forward" in vars(self):
            return ["its forward was replaced"]
        terms = self._terms()
        return [terms] if isinstance(terms, str) else []

    def forward(self, x: list[Tensor]) -> Any:
        impl = self.fast_settings.impl
        note = next((n for one in x if (n := call_fault(one, impl))), None)
        terms = self._terms() if note is None else note
        if not isinstance(terms, str):
            terms = self._sizes(x, terms) or self._dtypes(x, terms) or terms
        if isinstance(terms, str):
            return self._plain(terms, x)
        self.fast_note = None
        features = [branch(one) for branch, one in zip(self.branches, x, strict=True)]  # type: ignore[arg-type]
        s = self.fast_settings
        return run_fusion(plan_fusion(terms, len(features), s.mode, s.align_corners, s.impl), features)

    def _terms(self) -> list[list[Term]] | str:
        terms = _terms(self.rows())
        if isinstance(terms, str):
            return terms
        if not alike([s.norm for row in terms for t in row for s in t.steps]):
            return "its normalisations differ in where they take their statistics"
        others = [child for name, child in self.named_children() if name not in ("branches", "fuse_layers")]
        for child in others:
            if type(child) not in (nn.ReLU, nn.Identity):
                return f"a {type(child).__name__} stands beside its fuse_layers"
        return hooked([*self.fuse_layers.modules(), *others]) or terms  # type: ignore[operator,union-attr]

    def _sizes(self, xs: Sequence[Tensor], terms: Sequence[Sequence[Term]]) -> str | None:
        """Branches keep sizes, so those of their inputs tell."""
        if len(xs) != len(self.branches):  # type: ignore[arg-type]
            return f"{len(xs)} maps for {len(self.branches)} branches"  # type: ignore[arg-type]
        for row in terms:
            for term in row:
                own, target = tuple(xs[term.source].shape[-2:]), tuple(xs[term.target].shape[-2:])
                made = [_size_after(n, k, term.steps) for k, n in enumerate(own)]
                if term.source > term.target:
                    if not self.fast_settings.exact_scale:
                        continue
                    made = [n << (term.source - term.target) for n in made]
                if made != list(target):
                    return f"a map of {own} does not fit one of {target}"
        return None

    def _dtypes(self, xs: Sequence[Tensor], terms: Sequence[Sequence[Term]]) -> str | None:
        dtype = autocast_dtype(xs[0])
        if any(x.dtype != (dtype or xs[0].dtype) for x in xs):
            return "branches differ in dtype from what convolutions compute in"
        weights = {s.weight.dtype for row in terms for t in row for s in t.steps}
        if dtype is None and weights != {xs[0].dtype}:
            return "weights and branches differ in dtype"
        return None


def _size_after(size: int, axis: int, steps: Sequence[Step]) -> int:
    """Height (axis 0) or width (axis 1) behind a row of convolutions."""
    for s in steps:
        covered = s.dilation[axis] * (s.weight.shape[2 + axis] - 1) + 1
        size = (size + 2 * s.padding[axis] - covered) // s.stride[axis] + 1
    return size


def _terms(rows: Sequence[nn.ModuleList]) -> list[list[Term]] | str:
    """Read ``fuse_layers``; or say why the fusion cannot be stacked."""
    terms: list[list[Term]] = []
    for r, row in enumerate(rows):
        terms.append([])
        for x, layer in enumerate(row):
            if x == r:
                terms[r].append(Term(x, r, ()))
                continue
            found = _term(layer, x, r)
            if isinstance(found, str):
                return found
            terms[r].append(found)
    return terms


def _term(layer: nn.Module, source: int, target: int) -> Term | str:
    where = f"fuse_layers.{target}.{source}"
    layers = [m for m in flat(layer) if not isinstance(m, nn.Upsample)] if isinstance(layer, nn.Sequential) else []
    steps = []
    while len(layers) >= 2:
        conv, norm = layers[:2]
        reason = pair_fault(conv, norm)
        if reason:
            return f"{where}: {reason}"
        steps.append(read_row(conv, norm).steps[0])
        layers = layers[2:]
        if layers and type(layers[0]) is nn.ReLU:
            layers = layers[1:]
        elif layers:
            return f"{where}: {type(layers[0]).__name__} where a ReLU belongs"
    if layers or len(steps) != max(1, target - source):
        return f"{where} is no chain of convolutions and normalisations"
    stride = (1, 1) if source > target else (2, 2)
    if any(s.stride != stride for s in steps):
        return f"{where} has convolutions of stride {[s.stride for s in steps]}"
    return Term(source, target, tuple(steps))


KINDS: tuple[type[Fast], ...] = (FastUnit, FastSequence, FastFusion)


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
