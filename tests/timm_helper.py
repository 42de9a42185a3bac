"""Import the real timm where torchvision is absent, or was built for another torch.

timm imports torchvision throughout, but its HRNet needs none of it. A torchvision made for CUDA fails beside a
CPU-only torch, whose dispatcher lacks two of its operators; their schemas suffice for the import. Without torchvision,
empty stand-ins take its place for as long as timm is being imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from typing import Any

import torch

_MISSING_OPERATORS = ("nms", "qnms")
_STOOD_IN = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets")
_libraries: list[torch.library.Library] = []  # a library's definitions live as long as it does


class _Anything(type):
    """A class any attribute of which is a class of this kind: bases and enumeration members alike."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012  (a package, or its submodules could not be imported)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


def _forget_torchvision() -> None:
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]


def _define_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _MISSING_OPERATORS:
        with contextlib.suppress(RuntimeError):  # defined already, by a torchvision that got further than its brother
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _stand_in_for_torchvision() -> None:
    for suffix in _STOOD_IN:
        module = _StandIn(f"torchvision{suffix}")
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


@functools.cache
def import_timm() -> Any:
    """Return the timm package."""
    stood_in = False
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _forget_torchvision()
        _define_missing_operators()
        importlib.import_module("torchvision")
    except ImportError:
        _forget_torchvision()
        _stand_in_for_torchvision()
        stood_in = True
    try:
        return importlib.import_module("timm")
    finally:
        if stood_in:  # nobody else is to find it
            _forget_torchvision()


def timm_is_installed() -> bool:
    return importlib.util.find_spec("timm") is not None
