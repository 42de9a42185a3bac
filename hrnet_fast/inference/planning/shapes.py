"""Shape inference of the most common calls on meta tensors.

PyTorch runs these through Python decompositions, which takes most of the time of tracing a network, and the first such
call imports a thousand modules. Every other call, and every call with unusual arguments, runs in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Result = Tensor | None


def result_without_running(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    """Return an empty tensor like the call's result, or None where PyTorch has to run it."""
    rule = _RULES.get(function)
    return None if rule is None else rule(args, kwargs)


def _meta_like(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def _height_width(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, (int, float)) else tuple(value)  # type: ignore[return-value]


def _batch_norm(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    training = args[5] if len(args) > 5 else kwargs.get("training", False)
    return None if training else _meta_like(args[0], args[0].shape)


def _conv2d(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    if kwargs or len(args) != 7 or isinstance(args[4], str):
        return None
    x, weight, _, stride, padding, dilation, groups = args
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        return None
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[2:],
            weight.shape[2:],
            _height_width(stride),
            _height_width(padding),
            _height_width(dilation),
            strict=True,
        )
    ]
    return _meta_like(x, (x.shape[0], weight.shape[0], *size)) if min(size) > 0 else None


def _add(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    alike = len(args) == 2 and not kwargs and all(isinstance(a, Tensor) for a in args)
    return _meta_like(args[0], args[0].shape) if alike and _same_kind(*args) else None


def _add_in_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    return args[0] if _add(args, kwargs) is not None else None


def _same_kind(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _cat(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    if kwargs.get("dim", args[1] if len(args) > 1 else 0) != 1 or not args or not set(kwargs) <= {"dim"}:
        return None
    if any(t.dim() != 4 for t in args[0]):
        return None
    parts = args[0]
    if len({(t.shape[0], *t.shape[2:], t.dtype) for t in parts}) > 1:
        return None
    return _meta_like(parts[0], (parts[0].shape[0], sum(t.shape[1] for t in parts), *parts[0].shape[2:]))


def _interpolate(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    given = dict(zip(("input", "size", "scale_factor", "mode"), args, strict=False)) | dict(kwargs)
    x, size, factor = given["input"], given.get("size"), given.get("scale_factor")
    if x.dim() != 4 or (size is None) == (factor is None) or given.get("mode") not in ("nearest", "bilinear"):
        return None
    if size is None:
        size = [int(n * f) for n, f in zip(x.shape[2:], _height_width(factor), strict=True)]
    return _meta_like(x, (*x.shape[:2], *_height_width(size)))


def _softmax(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    alike = len(args) >= 1 and set(kwargs) <= {"dim"} and isinstance(args[0], Tensor) and len(args) <= 2
    return _meta_like(args[0], args[0].shape) if alike and args[0].is_floating_point() else None


def _scaled(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    alike = len(args) == 2 and not kwargs and isinstance(args[1], (int, float)) and isinstance(args[0], Tensor)
    return _meta_like(args[0], args[0].shape) if alike and args[0].is_floating_point() else None


def _matmul(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
    if kwargs or len(args) != 2 or not all(isinstance(a, Tensor) and a.dim() == 3 for a in args):
        return None
    a, b = args
    fits = a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1] and a.dtype == b.dtype
    return _meta_like(a, (a.shape[0], a.shape[1], b.shape[2])) if fits else None


_RULES: dict[Any, Callable[[tuple[Any, ...], Mapping[str, Any]], Result]] = {
    F.batch_norm: _batch_norm,
    torch.conv2d: _conv2d,
    F.interpolate: _interpolate,
    torch.cat: _cat,
    torch.add: _add,
    Tensor.add: _add,
    Tensor.__add__: _add,
    Tensor.__radd__: _add,
    Tensor.add_: _add_in_place,
    Tensor.__iadd__: _add_in_place,
    # Functions of object attention (OCR).
    F.softmax: _softmax,
    torch.softmax: _softmax,
    Tensor.softmax: _softmax,
    Tensor.__mul__: _scaled,
    Tensor.mul: _scaled,
    torch.mul: _scaled,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
}

# Functions above that change their first argument and return it.
IN_PLACE = (Tensor.add_, Tensor.__iadd__)
