"""Whether operators of the compiled extension that make inputs on a CPU can be called."""

from __future__ import annotations

import functools

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def may_call(name: str) -> bool:
    """Whether ``torch.ops.hrnet_fast.<name>`` is there, and nothing traces or observes, which gets the plain code."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or is_in_torch_dispatch_mode():
        return False
    return _is_built(name)


@functools.cache
def _is_built(name: str) -> bool:
    try:
        from hrnet_fast import _C  # noqa: F401 (registers the operators)
    except ImportError:
        return False
    return hasattr(torch.ops.hrnet_fast, name)
