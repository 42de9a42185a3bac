"""The compiled extension: classes of fused training, and operators as nodes of autograd's graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.implementations import select_implementation

_CLASSES = (Tensor, torch.nn.Parameter)


@functools.cache
def load_compiled() -> Any | None:
    """Return the extension module, or None where it was not built.

    It has ``ResidualChain`` and ``StackedFusion``, which are made of modules and read their tensors at every call, and
    ``ModuleStates``, which compares modules' attributes with copies.
    """
    try:
        from hrnet_fast import _C
    except ImportError:
        return None
    return _C


def compiled_operator(operator: str, impl: str, tensor: Tensor) -> Callable[..., Tensor | None] | None:
    """Return an operator with its gradient in C++ for a call with this tensor, or None where it does not apply.

    It takes checked arguments, and returns None, with nothing changed, where the operators registered with
    ``torch.library`` have to compute: other tensor classes, modes, transforms and tracing. Compilers see those alone.

    Raises:
        ImplementationError: a named implementation that cannot run here.
    """
    if torch.compiler.is_compiling() or type(tensor) not in _CLASSES or tensor.device.type not in ("cpu", "cuda"):
        return None  # what is traced needs no device that is here
    if select_implementation(operator, impl, tensor) not in ("cpu", "cuda"):
        return None
    found: Callable[..., Tensor | None] = getattr(load_compiled(), operator)
    return found
