"""Files of engines: plans as plain data, and the tensors that their weights are made of.

Files are read with ``weights_only=True``: they hold tensors, numbers, strings, lists and mappings, and no objects.
Functions are stored by name, and only PyTorch's functions of tensors are accepted, none that reads files or runs code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import get_overridable_functions, resolve_name

from hrnet_fast.errors import InputError
from hrnet_fast.inference import plan as p
from hrnet_fast.inference import steps as s
from hrnet_fast.inference import weights as w
from hrnet_fast.inference.planning.tracer import EngineDevice, EngineDtype, GetItem, OutOfPlace, StateRef
from hrnet_fast.inference.slots import state_names
from hrnet_fast.whole_files import written_whole

FORMAT = 3
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        p.Plan, s.Buffer, s.View, s.Slot, s.ImportStep, s.ExportStep, s.ConvStep, s.SumStep, s.SumTerm,
        s.PoolStep, s.CallStep, w.WeightSpec, w.Piece, w.Source, w.NormNames, StateRef, GetItem, OutOfPlace,
        EngineDevice, EngineDtype,
    )
}  # fmt: skip


def save(
    path: str | os.PathLike[str],
    plans: Mapping[tuple[int, ...], p.Plan],
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
) -> None:
    """Write plans, the tensors they need and an engine's settings, completely or not at all."""
    names = {name for plan in plans.values() for name in _needed(plan)}
    content = {
        "hrnet_fast_engine": FORMAT,
        "settings": _encode(dict(settings)),
        "plans": [_encode(plan) for plan in plans.values()],
        "tensors": {name: tensors[name].detach().cpu().clone() for name in sorted(names)},
    }
    with whole_file(path, "Engine.save") as unfinished:
        torch.save(content, unfinished)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces it on success and is removed on failure.

    Raises:
        InputError: the folder does not exist or cannot be written, or `path` is a folder.
    """
    try:
        with written_whole(Path(path)) as unfinished:
            yield unfinished
    except OSError as error:
        raise InputError(f"{what}: {path} cannot be written ({error}).") from error


def load(path: str | os.PathLike[str]) -> tuple[dict[tuple[int, ...], p.Plan], dict[str, Tensor], dict[str, Any]]:
    """Return plans by input shape, tensors by name, and settings of a file that :func:`save` wrote.

    Raises:
        InputError: the file does not exist, is damaged or has another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the unpickler raise many types
        raise InputError(
            f"Engine.load: {path} cannot be read ({type(error).__name__}: {_first_line(error)})."
        ) from error
    version = content.get("hrnet_fast_engine") if isinstance(content, dict) else None
    if version != FORMAT:
        raise InputError(
            f"Engine.load: {path} is no engine that this version reads (format {version}, accepted is {FORMAT}); "
            "a file written by Engine.save is, a checkpoint is for hrnet_fast.load_checkpoint."
        )
    try:
        plans = [_decode(plan) for plan in content["plans"]]
        tensors, settings = content["tensors"], _decode(content["settings"])
        missing = sorted(name for plan in plans for name in _needed(plan) if not isinstance(tensors[name], Tensor))
        if missing or not plans or not set(settings) >= {"dtype", "outer", "images", "max_shapes"}:
            raise ValueError(f"plans, settings or tensors {missing[:3]} are missing")
        return {plan.input_shape: plan for plan in plans}, tensors, settings
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise InputError(f"Engine.load: {path} does not hold what Engine.save writes ({error!r:.100}).") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160]


def _needed(plan: p.Plan) -> set[str]:
    """Names of the tensors that a plan's weights and calls read."""
    names = set(state_names(plan))
    for spec in plan.weights:
        for piece in spec.pieces:
            source = piece.source
            names |= {name for name in (source.weight, source.bias) if name}
            for norm in source.norms:
                names |= {name for name in (norm.mean, norm.var, norm.weight, norm.bias) if name}
    return names


def _encode(thing: Any) -> Any:
    if dataclasses.is_dataclass(thing) and type(thing).__name__ in _KINDS:
        fields = {f.name: _encode(getattr(thing, f.name)) for f in dataclasses.fields(thing)}
        return {"kind": type(thing).__name__, "fields": fields}
    if isinstance(thing, torch.dtype):
        return {"kind": "dtype", "name": str(thing).removeprefix("torch.")}
    if isinstance(thing, dict):
        return {"kind": "dict", "items": [[_encode(k), _encode(v)] for k, v in thing.items()]}
    if isinstance(thing, (list, tuple)):
        return {"kind": "list" if isinstance(thing, list) else "tuple", "items": [_encode(v) for v in thing]}
    if isinstance(thing, slice):
        return {"kind": "slice", "items": [thing.start, thing.stop, thing.step]}
    if thing is Ellipsis:
        return {"kind": "ellipsis"}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    name = resolve_name(thing) or f"torch.{getattr(thing, '__name__', '')}" if callable(thing) else None
    if name not in _functions():
        raise InputError(f"Engine.save: {thing!r}, which the model's forward uses, cannot be written to a file.")
    return {"kind": "function", "name": name}


def _decode(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    kind = data["kind"]
    if kind in _KINDS:
        fields = {name: _decode(value) for name, value in data["fields"].items()}
        if not callable(fields.get("function", _decode)):
            raise ValueError(f"{fields['function']!r} is no function")
        return _KINDS[kind](**fields)
    if kind == "dtype":
        dtype = getattr(torch, data["name"])
        if not isinstance(dtype, torch.dtype):  # torch has functions too, and a file must not name one of those
            raise ValueError(f"{data['name']} is no dtype")
        return dtype
    if kind == "dict":
        return {_decode(k): _decode(v) for k, v in data["items"]}
    if kind in ("list", "tuple"):
        items = [_decode(v) for v in data["items"]]
        return items if kind == "list" else tuple(items)
    if kind == "slice":
        return slice(*data["items"])
    if kind == "ellipsis":
        return Ellipsis
    return _functions()[data["name"]]


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """PyTorch's functions of tensors by name."""
    # Functions that the list lacks: one by mistake, and those that take no tensors.
    found: dict[str, Callable[..., Any]] = {"torch.Tensor.unflatten": Tensor.unflatten}
    for make in (torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.zeros):
        found[f"torch.{make.__name__}"] = make
    for functions in get_overridable_functions().values():
        for function in functions:
            name = resolve_name(function)
            if name is not None:
                found[name] = function
    return found
