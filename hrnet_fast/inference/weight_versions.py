"""``WeightVersions``: whether a model's tensors changed since they were read, at the cost of microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from hrnet_fast.ops.primitives import load_compiled

CHANGED = (
    "Engine: the model's weights changed or moved since this engine read them (by an optimizer, load_state_dict, an "
    "assignment, .to()). Call engine.refresh(), or optimize_for_inference again for engines inside a model; or give "
    "optimize_for_inference refresh='auto' to read them at such a call, or refresh='never' to keep what was read."
)


class WeightVersions:
    """Identities, version counters and addresses of a model's parameters and buffers at one time.

    Writes through ``tensor.data`` move no version counter: ``p.data.copy_(...)`` goes unnoticed, by autograd too.
    """

    def __init__(self, model: nn.Module) -> None:
        holders = ("_parameters", "_buffers", "_modules")
        dictionaries = [own for m in model.modules() for k in holders if isinstance(own := getattr(m, k), dict) and own]
        extension = load_compiled()
        self._states = _Versions(dictionaries) if extension is None else extension.TensorVersions(dictionaries)

    def unchanged(self) -> bool:
        """Whether every tensor is the object it was, with its version and at its address."""
        return bool(self._states.unchanged())


class _Versions:
    """The states of tensors, as the compiled extension's ``TensorVersions`` has them."""

    def __init__(self, dictionaries: Sequence[dict[str, Any]]) -> None:
        self._dictionaries = list(dictionaries)
        self._copies = [own.copy() for own in self._dictionaries]
        values = [value for own in self._copies for value in own.values()]
        self._tensors = [v for v in values if isinstance(v, Tensor)]
        # Inference tensors have no version counter.
        self._counted = [t for t in self._tensors if not t.is_inference()]
        self._state = self._read()

    def unchanged(self) -> bool:
        try:
            # Equal objects are not compared further; other tensors than before have no single truth value.
            return self._dictionaries == self._copies and self._read() == self._state
        except (RuntimeError, TypeError, ValueError):
            return False

    def _read(self) -> tuple[list[int], list[int]]:
        return list(map(attrgetter("_version"), self._counted)), list(map(_address, self._tensors))


def _address(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.data_ptr()
