"""Nested tuples, lists and dicts of tensors: batches, and what losses return."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Values that a captured step has as constants; two equal ones are one constant.
_CONSTANTS = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size, enum.Enum)
_MAPPINGS = (dict, OrderedDict)


class UnsupportedStructureError(Exception):
    """A structure holds something that is neither a tensor nor a constant."""


def structure_key(value: Any, tensors: list[Tensor]) -> Any:
    """Append the tensors of `value`, in order, and return a hashable key of everything else about it.

    The key has the shapes, strides and dtypes of tensors, the structure, and the constants.

    Raises:
        UnsupportedStructureError: it holds another kind of object, or a tensor that a copy cannot stand for.
    """
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        if value.layout is not torch.strided or value.requires_grad:
            what = "a tensor that requires gradients" if value.requires_grad else f"a {value.layout} tensor"
            raise UnsupportedStructureError(what)
        tensors.append(value)
        return value.shape, value.stride(), value.dtype
    if kind in (tuple, list) or _is_named_tuple(value):
        return kind, *[structure_key(v, tensors) for v in value]
    if kind in _MAPPINGS:
        return kind, tuple(value), *[structure_key(v, tensors) for v in value.values()]
    if isinstance(value, _CONSTANTS):
        return kind, value
    raise UnsupportedStructureError(f"an object of {kind.__name__}")


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return `value` with each tensor replaced by the function's result; other objects stay the same."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(map_tensors(function, v) for v in value)
    if _is_named_tuple(value):
        return type(value)(*(map_tensors(function, v) for v in value))
    if type(value) in _MAPPINGS:
        return type(value)((k, map_tensors(function, v)) for k, v in value.items())
    return value


def unrepeatable(value: Any, device: torch.device) -> str | None:
    """Say what of a loss's result a replay would not compute anew, or None."""
    if isinstance(value, Tensor):
        return None if value.device == device else "the loss returns a tensor in host memory"
    if type(value) in (tuple, list) or _is_named_tuple(value):
        return next((found for v in value if (found := unrepeatable(v, device))), None)
    if type(value) in _MAPPINGS:
        return unrepeatable(list(value.values()), device)
    if value is None or isinstance(value, (str, bytes)):
        return None
    return f"the loss returns an object of {type(value).__name__}; return tensors"


def shapes_text(key: Any) -> str:
    """Return the key of a batch (images, targets) for a message: shapes and dtypes, and other constants."""
    images, targets = key[1:]
    return f"images {_text(images)}, targets {_text(targets)}"


def _text(key: Any) -> str:
    if key and isinstance(key[0], torch.Size):
        return f"{list(key[0])} {str(key[2]).removeprefix('torch.')}"
    kind, *rest = key
    if issubclass(kind, _MAPPINGS):
        return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in zip(rest[0], rest[1:], strict=True)) + "}"
    if issubclass(kind, (tuple, list)) and not issubclass(kind, torch.Size):
        return "(" + ", ".join(map(_text, rest)) + ")"
    return repr(rest[0])


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(type(value), "_fields")
