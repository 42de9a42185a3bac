"""Which implementation runs: the one rule for ``impl=`` arguments and for ``HRNET_FAST_IMPL``.

``"auto"`` picks the fastest implementation that applies. A named one that cannot run here raises; it never falls
back.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from hrnet_fast.errors import ImplementationError, shown

ENV_VAR = "HRNET_FAST_IMPL"
NAMES = ("reference", "cpu", "triton", "cuda")

# Operators that each implementation has. The reference has all.
OPERATORS: dict[str, tuple[str, ...]] = {
    "cpu": ("fuse_sum", "bn_act"),
    "triton": ("fuse_sum", "bn_act", "upsample_conv1x1_sum", "strided_conv_chain", "grouped_conv3x3"),
    "cuda": ("fuse_sum", "bn_act"),
}
# What runs on a device, fastest first.
BY_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


def interpreting() -> bool:
    """Whether Triton interprets its kernels (``TRITON_INTERPRET=1``): slowly, on any device, to test them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


@dataclass(frozen=True)
class Implementation:
    """What can be said of one implementation on this machine.

    Attributes:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        usable: whether its operators can run here.
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


def _extension_unsupported_reason() -> str:
    """Say why :func:`build_info` has nothing to tell: never built, or built for another torch than runs."""
    try:
        importlib.import_module("hrnet_fast._C")
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        return f"the compiled extension does not load; build it anew ({str(error)[:160]})"
    return "the compiled extension was not built (needs a C++ compiler at install time)"


def _prerequisite(name: str) -> str | None:
    """Return what this machine lacks for `name`, or None."""
    if name in ("cpu", "cuda"):
        info = build_info()
        if info is None:
            return _extension_unsupported_reason()
        if name == "cuda" and info["cuda"] == "none":
            return "the compiled extension was built without nvcc"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if name in ("triton", "cuda") and not torch.cuda.is_available() and not (name == "triton" and interpreting()):
        return "torch sees no CUDA device"
    return None


def describe(name: str) -> Implementation:
    """Say whether `name` can run here, and why or why not."""
    if name == "reference":
        return Implementation(name, True, "plain PyTorch, runs wherever torch does; every operator")
    lacking = _prerequisite(name)
    if lacking:
        return Implementation(name, False, lacking)
    return Implementation(name, True, f"operators: {', '.join(OPERATORS[name])}")


def _asked(impl: str) -> tuple[str, str]:
    """Return the name asked for, the environment's where `impl` leaves it open, and how it was asked."""
    asked, origin = impl, f"impl={shown(impl)}"
    if isinstance(impl, str) and impl == "auto" and os.environ.get(ENV_VAR):
        asked = os.environ[ENV_VAR]
        origin = f"{ENV_VAR}={asked}"
    if not isinstance(asked, str) or asked not in ("auto", *NAMES):
        raise ImplementationError(f"{origin} is not one of {', '.join(('auto', *NAMES))}.")
    return asked, origin


def resolve(impl: str = "auto") -> str:
    """Return the implementation that `impl` means for a whole network here.

    For ``"auto"`` that is what this machine's fastest device runs; a network itself decides at every call, by the
    device it is on.

    Args:
        impl: ``"auto"`` (then the environment variable ``HRNET_FAST_IMPL`` decides, if set) or a name.

    Raises:
        ImplementationError: an unknown name, or a named implementation that cannot run here.
    """
    asked, origin = _asked(impl)
    if asked == "auto":
        return next(name for name in ("cuda", "triton", "cpu", "reference") if describe(name).usable)
    found = describe(asked)
    if not found.usable:
        raise ImplementationError(
            f"{origin} cannot run here: {found.reason}. Take 'auto' or 'reference'; `hrnet-fast doctor` shows all."
        )
    return asked


def implementation_within_network(operator: str, impl: str) -> str:
    """Return which implementation of one operator a network takes that was given `impl` for all of them.

    An implementation that has not this operator leaves it to the fastest that has.
    """
    asked, _ = _asked(impl)
    return impl if asked in ("auto", "reference") or operator in OPERATORS[asked] else "auto"


def auto_is_reference(impl: str, tensor: Tensor) -> bool:
    """Whether ``"auto"`` finds nothing faster than plain PyTorch for a network's operators on `tensor`."""
    return _asked(impl)[0] == "auto" and "reference" in (
        select_implementation("bn_act", impl, tensor),
        select_implementation("fuse_sum", impl, tensor),
    )


@functools.cache
def _runs(name: str, operator: str) -> bool:
    return operator in OPERATORS[name] and describe(name).usable


def select_implementation(operator: str, impl: str, tensor: Tensor) -> str:
    """Return the implementation of `operator` for a tensor's device.

    Raises:
        ImplementationError: a named implementation without this operator, or for another device.
    """
    asked, origin = _asked(impl)
    if impl == "auto" and asked in OPERATORS and operator not in OPERATORS[asked]:
        asked = "auto"  # the environment names one for all operators; it counts for those that it has
    able = [name for name in BY_DEVICE.get(tensor.device.type, ()) if _runs(name, operator)]
    if tensor.dtype == torch.float64:
        able = [name for name in able if name != "triton"]  # its kernels compute in float32
    if asked == "auto":
        return able[0] if able else "reference"
    interpreted = asked == "triton" and interpreting() and _runs(asked, operator) and tensor.dtype != torch.float64
    if asked == "reference" or asked in able or interpreted:
        return asked
    why = describe(asked).reason
    if asked == "triton" and tensor.dtype == torch.float64:
        why = "it has no float64"
    raise ImplementationError(
        f"{operator}: {origin} cannot run on {tensor.device}: {why}. Usable here: {', '.join((*able, 'reference'))}."
    )
