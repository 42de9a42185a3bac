"""Whether operators of the compiled extension that make inputs on a CPU can be called."""

from __future__ import annotations

import functools

import torch


def may_call(name: str) -> bool:
    """Whether ``torch.ops.hrnet_fast.<name>`` is there; PyTorch's compiler gets the plain code, which it can read."""
    return not torch.compiler.is_compiling() and _is_built(name)


@functools.cache
def _is_built(name: str) -> bool:
    try:
        from hrnet_fast import _C  # noqa: F401 (registers the operators)
    except ImportError:
        return False
    return hasattr(torch.ops.hrnet_fast, name)
