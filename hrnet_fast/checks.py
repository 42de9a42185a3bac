"""Checks of arguments of public functions; each raises InputError with the accepted types or values."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.errors import InputError, shown


def check_module(what: str, model: Any) -> None:
    """Raise InputError unless `model` is an ``nn.Module``."""
    if isinstance(model, nn.Module):
        return
    hint = "."
    if model is None:
        hint = "; the train() and eval() of some code bases return None: call model.eval() on a line of its own."
    raise InputError(f"{what}: {shown(model)} given; accepted is an nn.Module{hint}")


def check_tensor(what: str, name: str, tensor: Any, *, optional: bool = False) -> None:
    """Raise InputError unless `tensor` is a tensor, or None if `optional`."""
    if not isinstance(tensor, Tensor) and not (optional and tensor is None):
        raise InputError(f"{what}: {name} is {shown(tensor)}; accepted is a tensor{' or None' if optional else ''}.")


def check_tensors(what: str, name: str, tensors: Any, *, optional: bool = False) -> list[Any]:
    """Return a list or tuple of tensors (or None if `optional`) as a list."""
    if not isinstance(tensors, (list, tuple, nn.ParameterList)):
        raise InputError(f"{what}: {name} is {shown(tensors)}; accepted is a list or tuple of tensors.")
    for k, tensor in enumerate(tensors):
        check_tensor(what, f"{name}[{k}]", tensor, optional=optional)
    return list(tensors)


def check_bool(what: str, **values: Any) -> None:
    """Raise InputError unless all are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(f"{what}: {name}={shown(value)}; accepted are True and False.")


def check_text(what: str, **values: Any) -> None:
    """Raise InputError unless all are strings."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{what}: {name}={shown(value)}; accepted is a string.")


def check_integer(what: str, name: str, value: Any, least: int = 1) -> None:
    """Raise InputError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{what}: {name}={shown(value)} must be an integer of at least {least}.")


def is_number(value: Any) -> bool:
    """Whether `value` is a finite real number or a symbolic one of ``torch.compile``."""
    if isinstance(value, torch.SymFloat):
        return True
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_number(what: str, name: str, value: Any) -> None:
    """Raise InputError unless `value` is a finite number."""
    if not is_number(value):
        raise InputError(f"{what}: {name}={shown(value)} must be a finite number.")


def check_numbers(what: str, name: str, values: Any, kind: str = "numbers") -> tuple[float, ...]:
    """Return a sequence of one or more finite numbers as a tuple."""
    found = tuple(values) if isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping)) else ()
    if isinstance(values, Tensor):
        found = tuple(values.tolist()) if values.dim() == 1 else ()
    if not found or not all(is_number(value) for value in found):
        raise InputError(f"{what}: {name}={shown(values)}; accepted is a sequence of one or more {kind}.")
    return found


def check_shape(what: str, shape: Any) -> tuple[int, ...]:
    """Return an input's shape [N, C, H, W] as a tuple of four integers."""
    found = tuple(shape) if isinstance(shape, (list, tuple)) else ()  # a torch.Size is a tuple
    if len(found) != 4 or any(type(n) is not int for n in found) or found[0] < 0 or min(found[1:]) < 1:
        raise InputError(
            f"{what}: shape {shown(shape)} given; accepted are four integers [N, C, H, W], N at least 0, the others 1."
        )
    return found


def check_path(what: str, path: Any) -> Path:
    """Return a path given as str or PathLike."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InputError(f"{what}: {shown(path)} given; accepted is a file's path.")
    return Path(path)


def check_device(what: str, device: Any) -> torch.device:
    """Return an existing device with its index."""
    try:
        if not isinstance(device, (str, torch.device)):
            raise TypeError("a name such as 'cpu' or 'cuda', or a torch.device, is accepted")
        if torch.device(device).type == "meta":
            raise TypeError("tensors there have no values")
        return torch.empty(0, device=device).device  # resolves "cuda" to a device with an index
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what}: device {shown(device)} cannot be used ({reason[:160]}).") from error
