"""Which implementation runs: the one rule for ``impl=`` arguments and for ``HRNET_FAST_IMPL``.

``"auto"`` picks the fastest implementation that applies. A named one that cannot run here raises; it never falls
back.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from hrnet_fast.errors import ImplementationError

ENV_VAR = "HRNET_FAST_IMPL"
NAMES = ("reference", "cpu", "triton", "cuda")

# Operators per implementation, as they are added; the reference is whole networks and needs none.
OPERATORS: dict[str, tuple[str, ...]] = {"cpu": (), "triton": (), "cuda": ()}


@dataclass(frozen=True)
class Implementation:
    """What can be said of one implementation on this machine.

    Attributes:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        usable: whether it can be asked for by name here.
        reason: why it can or cannot.
    """

    name: str
    usable: bool
    reason: str


def build_info() -> dict[str, str] | None:
    """Return what the compiled extension says of its build, or None where it was not built."""
    try:
        from hrnet_fast import _C
    except ImportError:
        return None
    return dict(_C.build_info())


def _prerequisite(name: str) -> str | None:
    """Return what this machine lacks for `name`, or None."""
    if name in ("cpu", "cuda"):
        info = build_info()
        if info is None:
            return "the compiled extension was not built (needs a C++ compiler at install time)"
        if name == "cuda" and info["cuda"] == "none":
            return "the compiled extension was built without nvcc"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if name in ("triton", "cuda"):
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    return None


def describe(name: str) -> Implementation:
    """Say whether `name` can run here, and why or why not."""
    if name == "reference":
        return Implementation(name, True, "plain PyTorch, runs wherever torch does")
    lacking = _prerequisite(name)
    if not OPERATORS[name]:
        state = f"and {lacking}" if lacking else "though this machine could run it"
        return Implementation(name, False, f"this version has no {name} operators, {state}")
    if lacking:
        return Implementation(name, False, lacking)
    return Implementation(name, True, f"operators: {', '.join(OPERATORS[name])}")


def resolve(impl: str = "auto") -> str:
    """Return the implementation that `impl` means here.

    Args:
        impl: ``"auto"`` (then the environment variable ``HRNET_FAST_IMPL`` decides, if set) or a name.

    Raises:
        ImplementationError: an unknown name, or a named implementation that cannot run here.
    """
    origin = f"impl={impl!r}"
    if impl == "auto":
        impl = os.environ.get(ENV_VAR) or "auto"
        origin = f"{ENV_VAR}={impl}"
    if impl == "auto":
        return next((n for n in reversed(NAMES) if describe(n).usable), "reference")
    if impl not in NAMES:
        raise ImplementationError(f"{origin} is not one of {', '.join(('auto', *NAMES))}.")
    found = describe(impl)
    if not found.usable:
        raise ImplementationError(
            f"{origin} cannot run here: {found.reason}. Take 'auto' or 'reference'; `hrnet-fast doctor` shows all."
        )
    return impl
