"""The compiled extension's classes of fused training: residual chains and fusions as one call each."""

from __future__ import annotations

import functools
from typing import Any


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
