"""Parameters and buffers that a captured step writes to, examined at every replay."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from hrnet_fast.ops.primitives import load_compiled


def tensor_list(tensors: Sequence[Tensor]) -> Any:
    """Return the tensors as a :class:`TensorList`, or as the compiled extension's class with the same methods."""
    extension = load_compiled()
    return (TensorList if extension is None else extension.TensorList)(list(tensors))


class TensorList:
    """Tensors, with their addresses and whether they required gradients when this was made."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._addresses = list(map(Tensor.data_ptr, tensors))
        self._trained = list(map(_requires_grad, tensors))

    def have_same_memory(self) -> bool:
        return list(map(Tensor.data_ptr, self._tensors)) == self._addresses

    def require_same_gradients(self) -> bool:
        return list(map(_requires_grad, self._tensors)) == self._trained

    def have_gradients(self, gradients: list[Tensor | None]) -> bool:
        """Whether each tensor's gradient is the given one, or None."""
        return all(map(operator.is_, gradients_of(self._tensors), gradients))

    def increment_versions(self) -> None:
        """Say that something wrote to them."""
        increment_version(self._tensors)


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor | None]:
    """Return the gradients of parameters, as they are now."""
    return list(map(_grad, parameters))


_requires_grad = operator.attrgetter("requires_grad")
_grad = operator.attrgetter("grad")
