"""The functions that a pickle may call: those by which ``torch.save`` writes tensors and state_dicts.

Their time and memory are proportional to the instructions of the file. A function that copies its argument (``bytes``,
``set``) is not allowed: a file could reference one large object many times.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints.inert import Inert, Name, refuse

# Storage types that torch.save names, in the modules `torch`, `torch.cuda` and `torch.storage`.
STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# Hashing a tuple recurses in C and visits every part as often as it occurs.
DEEPEST_KEY, MOST_IN_KEY = 20, 100
MOST_DIMENSIONS = 64
# Largest number of elements of an expanded tensor, whose elements share memory.
MOST_REPEATED = 1 << 24
_KEYS = (str, bytes, int, float, complex, tuple, frozenset, type(None), torch.dtype, Tensor, Name, Inert)


@dataclass(frozen=True)
class StorageType:
    """The element type of a storage, as a pickle names it."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """Memory of `numel` elements from byte `start` of `untyped`, filled from the file."""

    untyped: torch.UntypedStorage
    dtype: torch.dtype
    numel: int
    start: int = 0


@dataclass(frozen=True)
class Allowed:
    """A function of this module that replaces a function which a pickle may call."""

    function: Callable[..., Any]


def _check_sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MOST_DIMENSIONS:
        refuse("a tensor's sizes and strides are no short tuples")
    if any(type(v) is not int or v < 0 for v in values):
        refuse("a tensor's sizes and strides are not numbers")
    return values


def _check_extent(storage: Storage, numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Check that a tensor lies within its storage and that elements share memory only in an expanded tensor."""
    if len(size) != len(stride):
        refuse("a tensor has as many sizes as strides")
    if 0 in size:
        if max(size) > MOST_REPEATED:
            refuse(f"an empty tensor of size {list(size)}")
        return
    reach = 0
    for step, count in sorted((s, n) for s, n in zip(stride, size, strict=True) if n > 1 and s > 0):
        if step <= reach:
            refuse(f"a tensor's strides {list(stride)} do not fit its size {list(size)}")
        reach += (count - 1) * step
    if offset + reach >= numel:
        refuse(f"a tensor of size {list(size)} reaches beyond its storage of {numel} elements")
    expanded = any(s == 0 and n > 1 for s, n in zip(stride, size, strict=True))
    if expanded and (reach + 1 != numel or math.prod(size) > MOST_REPEATED):
        refuse(f"a tensor's strides {list(stride)} do not fit its storage of {numel} elements")


def _build_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None
) -> Tensor:
    """Replace ``_rebuild_tensor`` and ``_rebuild_tensor_v2``; later arguments (gradient, hooks) are unused."""
    if not isinstance(storage, Storage):
        refuse("a tensor without a storage")
    size, stride = _check_sizes(size), _check_sizes(stride)
    (offset,) = _check_sizes((offset,))
    dtype = dtype or storage.dtype
    nbytes = storage.numel * storage.dtype.itemsize
    _check_extent(storage, nbytes // dtype.itemsize, offset, size, stride)
    first, rest = divmod(storage.start, dtype.itemsize)
    if rest:
        refuse("a storage that is not aligned to its elements")
    return torch.empty(0, dtype=dtype).set_(storage.untyped, first + offset, size, stride)  # type: ignore[call-overload, no-any-return]


def _build_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(dtype, torch.dtype):
        refuse("a tensor without a type")
    return _build_tensor(storage, offset, size, stride, dtype=dtype)


def _build_parameter(data: Any, *_: Any) -> Any:
    return data


def _build_from_type(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """Replace ``_rebuild_from_type_v2``: return the tensor without the attributes of its subclass."""
    return call_allowed(function, args)


def _ordered_dict(items: Any = None) -> OrderedDict[Any, Any]:
    """Return an ``OrderedDict`` (Python 2 passes its items). The list is emptied, so it serves one call only."""
    out: OrderedDict[Any, Any] = OrderedDict()
    if items is not None:
        if not isinstance(items, list):
            refuse("an OrderedDict of what is no list")
        for key, value in items:
            set_item(out, key, value)
        items.clear()
    return out


_UTILS = "torch._utils"
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Allowed(_ordered_dict),
    ("torch", "Size"): Allowed(_check_sizes),
    (_UTILS, "_rebuild_tensor"): Allowed(_build_tensor),
    (_UTILS, "_rebuild_tensor_v2"): Allowed(_build_tensor),
    (_UTILS, "_rebuild_tensor_v3"): Allowed(_build_tensor_v3),
    (_UTILS, "_rebuild_parameter"): Allowed(_build_parameter),
    (_UTILS, "_rebuild_parameter_with_state"): Allowed(_build_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Allowed(_build_from_type),
    **{
        (module, name): StorageType(dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in STORAGES.items()
    },
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}


def call_allowed(function: Any, args: Any) -> Any:
    """Call an allowed function; record the call of any other as an inert object with its arguments."""
    if not isinstance(args, tuple):
        refuse("arguments that are no tuple")
    if isinstance(function, Allowed):
        return function.function(*args)
    if not isinstance(function, (Name, Inert)):
        refuse(f"a call of {type(function).__name__}")
    return Inert(function, args)


def check_key(key: Any) -> None:
    """Refuse keys that are costly to hash, compare or show: large numbers, large or deep tuples, other objects."""
    pending, count = [(key, 0)], 0
    while pending:
        part, depth = pending.pop()
        count += 1
        if not isinstance(part, _KEYS) or (isinstance(part, int) and part.bit_length() > 256):
            refuse(f"a key of type {type(part).__name__}")
        if isinstance(part, (tuple, frozenset)):
            if depth > DEEPEST_KEY or count + len(pending) + len(part) > MOST_IN_KEY:
                refuse("a key of too many parts")
            pending += [(inner, depth + 1) for inner in part]


def set_item(mapping: Any, key: Any, value: Any) -> None:
    """Add an entry to a dictionary; refuse a key that it already has."""
    if not isinstance(mapping, dict):
        refuse(f"entries of {type(mapping).__name__}")
    if type(key) is not str:
        check_key(key)
    if key in mapping:
        refuse(f"two entries named {str(key)[:80]}")
    mapping[key] = value
