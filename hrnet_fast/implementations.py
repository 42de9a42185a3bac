"""Which implementation of an operator runs: the meaning of ``impl=`` arguments and of ``HRNET_FAST_IMPL``.

``"auto"`` picks the fastest implementation that applies. A named one that cannot run here raises; it never falls
back. A call of an operator is resolved at that call. Networks and engines are resolved when they are made or
accelerated: the environment is read then, and once.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from dataclasses import dataclass
from typing import NamedTuple

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
    """One implementation on this machine.

    Attributes:
        name: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        usable: whether its operators can run here.
        reason: why it can or cannot.
    """

    name: str
    usable: bool
    reason: str


def build_info() -> dict[str, str] | None:
    """Return how the compiled extension was built, or None where it was not."""
    try:
        from hrnet_fast import _C
    except ImportError:
        return None
    return dict(_C.build_info())


def _missing_extension() -> str:
    """Say why :func:`build_info` returns None: never built, or built for another torch than runs."""
    try:
        importlib.import_module("hrnet_fast._C")
    except ModuleNotFoundError:
        pass
    except ImportError as error:
        return f"the compiled extension does not load; build it anew ({str(error)[:160]})"
    return "the compiled extension was not built (needs a C++ compiler at install time)"


def _missing_prerequisite(name: str) -> str | None:
    """Return what this machine lacks for `name`, or None."""
    if name in ("cpu", "cuda"):
        info = build_info()
        if info is None:
            return _missing_extension()
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
    missing = _missing_prerequisite(name)
    if missing:
        return Implementation(name, False, missing)
    return Implementation(name, True, f"operators: {', '.join(OPERATORS[name])}")


class OperatorImplementations(NamedTuple):
    """The implementations of the operators that training uses, for tensors of one device and dtype."""

    bn_act: str
    fuse_sum: str


class RequestedImplementation(NamedTuple):
    """What ``impl=`` and the environment ask for: ``"auto"`` or an implementation."""

    name: str
    from_environment: bool = False

    def __str__(self) -> str:
        return f"{ENV_VAR}={self.name}" if self.from_environment else f"impl={shown(self.name)}"

    def operators(self, tensor: Tensor) -> OperatorImplementations:
        """Return what a network runs on tensors like `tensor`; an operator that `name` lacks is resolved as "auto".

        Raises:
            ImplementationError: a named implementation for another device or dtype.
        """
        return _operators(self, tensor.device, tensor.dtype)


def request(impl: str) -> RequestedImplementation:
    """Read `impl`, and the environment variable ``HRNET_FAST_IMPL`` where it is ``"auto"``.

    Raises:
        ImplementationError: an unknown name.
    """
    requested = RequestedImplementation(impl)
    if isinstance(impl, str) and impl == "auto" and os.environ.get(ENV_VAR):
        requested = RequestedImplementation(os.environ[ENV_VAR], from_environment=True)
    if not isinstance(requested.name, str) or requested.name not in ("auto", *NAMES):
        raise ImplementationError(f"{requested} is not one of {', '.join(('auto', *NAMES))}.")
    return requested


def resolve(impl: str = "auto") -> str:
    """Return the implementation that `impl` means for a whole network here.

    For ``"auto"`` that is what this machine's fastest device runs; a network on another device runs what
    :meth:`RequestedImplementation.operators` finds for it.

    Args:
        impl: ``"auto"`` (then the environment variable ``HRNET_FAST_IMPL`` decides, if set) or a name.

    Raises:
        ImplementationError: an unknown name, or a named implementation that cannot run here.
    """
    requested = request(impl)
    if requested.name == "auto":
        return next(name for name in ("cuda", "triton", "cpu", "reference") if describe(name).usable)
    found = describe(requested.name)
    if not found.usable:
        raise ImplementationError(
            f"{requested} cannot run here: {found.reason}. Take 'auto' or 'reference'; `hrnet-fast doctor` shows all."
        )
    return requested.name


@functools.cache
def _runs(name: str, operator: str) -> bool:
    return operator in OPERATORS[name] and describe(name).usable


def select_implementation(operator: str, impl: str, tensor: Tensor) -> str:
    """Return the implementation of `operator` for a tensor's device and dtype.

    Raises:
        ImplementationError: a named implementation without this operator, or for another device or dtype.
    """
    requested = request(impl)
    # The environment names one for all operators: it counts for those that it has.
    return _select(operator, requested, tensor.device, tensor.dtype, requested.from_environment)


@functools.cache
def _operators(requested: RequestedImplementation, device: torch.device, dtype: torch.dtype) -> OperatorImplementations:
    return OperatorImplementations(*(_select(name, requested, device, dtype, True) for name in ("bn_act", "fuse_sum")))


@functools.cache
def _select(
    operator: str, requested: RequestedImplementation, device: torch.device, dtype: torch.dtype, for_all: bool
) -> str:
    """Select for one operator; `for_all`: the request is for several operators, of which some may lack it."""
    able = [name for name in BY_DEVICE.get(device.type, ()) if operator in OPERATORS[name] and describe(name).usable]
    if dtype == torch.float64:
        able = [name for name in able if name != "triton"]  # its kernels compute in float32
    name = requested.name
    if name == "auto" or (for_all and name in OPERATORS and operator not in OPERATORS[name]):
        return able[0] if able else "reference"
    interpreted = name == "triton" and interpreting() and describe(name).usable and dtype != torch.float64
    if name == "reference" or name in able or interpreted:
        return name
    why = "it has no float64" if name == "triton" and dtype == torch.float64 else describe(name).reason
    usable = ", ".join((*able, "reference"))
    raise ImplementationError(f"{operator}: {requested} cannot run on {device}: {why}. Usable here: {usable}.")
