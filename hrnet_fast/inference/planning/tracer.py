"""The tracer: a model's forward on meta tensors, recorded call by call.

A trace is of one input shape. Models branch on shapes (whether to interpolate at all, for instance), so a trace that
was used for other shapes would change numbers in silence. Nothing is inferred from the names of modules.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.errors import InputError
from hrnet_fast.inference.planning.shapes import IN_PLACE, result_without_running
from hrnet_fast.training.batch_norm import is_frozen
from hrnet_fast.training.matching import hooked

# [N, C, H, W] of the input, or the shapes of several, which a module takes as one tuple.
InputShape = tuple[Any, ...]


def input_shapes(shape: InputShape) -> list[tuple[int, ...]]:
    """Return the shapes [N, C, H, W] of all inputs."""
    return list(shape) if has_several(shape) else [shape]


def has_several(shape: InputShape) -> bool:
    """Whether a shape is that of a tuple of inputs."""
    return isinstance(shape[0], tuple)


@dataclass(frozen=True)
class ValueRef:
    """The result of an earlier call by number, or the input (0), which may be a tuple."""

    value: int


@dataclass(frozen=True)
class StateRef:
    """A parameter or buffer of the model, by its name in the state_dict."""

    name: str


@dataclass(frozen=True)
class EngineDevice:
    """Placeholder of the device that a forward read from a tensor: the engine's device replaces it."""


@dataclass(frozen=True)
class EngineDtype:
    """Placeholder of the model's dtype in a call: the engine's dtype replaces it."""


@dataclass(frozen=True)
class TracedCall:
    """One call: its arguments, with tensors as :class:`ValueRef` and :class:`StateRef`, and its result's metadata."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int
    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True)
class Trace:
    """The calls of one forward.

    Attributes:
        input_shape: [N, C, H, W], or several.
        calls: in the order of execution.
        output: what the forward returned, with tensors as :class:`ValueRef`.
        state: shapes of the model's parameters and buffers by name.
    """

    input_shape: InputShape
    calls: tuple[TracedCall, ...]
    output: Any
    state: dict[str, tuple[int, ...]]


class _Tracer(TorchFunctionMode):
    def __init__(self, names: dict[int, str], x: Tensor | tuple[Tensor, ...]) -> None:
        super().__init__()
        self.calls: list[TracedCall] = []
        self._names = names
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is unique only while its object exists
        self._outdated: set[int] = set()
        if isinstance(x, Tensor):
            self._dtype = x.dtype
            self._values[id(x)] = 0
            self._alive.append(x)
        else:
            self._dtype = x[0].dtype
            for k, part in enumerate(x):
                self._add(operator.getitem, (ValueRef(0), k), {}, part)

    def reference(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and leaf.type == "meta":
            return EngineDevice()
        if isinstance(leaf, torch.dtype) and leaf == self._dtype:
            return EngineDtype()
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._outdated:
            raise InputError(
                "optimize_for_inference: the model's forward changes part of a tensor in place, through a view, and "
                "reads the whole afterwards, or the other way round; put the parts together with torch.cat."
            )
        if id(leaf) in self._values:
            return ValueRef(self._values[id(leaf)])
        if id(leaf) in self._names:
            return StateRef(self._names[id(leaf)])
        raise InputError(
            "optimize_for_inference: the model's forward uses a tensor that is neither its input, a parameter nor a "
            "buffer; register it as a buffer."
        )

    def returned(self, leaf: Any) -> Any:
        """Return the reference of an output; the model's state and its input are returned as copies."""
        found = self.reference(leaf)
        if isinstance(found, StateRef) or found == ValueRef(0):
            own = torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
            self._add(torch.clone, (found,), {}, own)
            return self.reference(own)
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not args and isinstance(kwargs.get("input"), Tensor):
            args = (kwargs.pop("input"),)
        given = {id(t): (t, t._version) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = result_without_running(func, args, kwargs)
        if out is not None:
            changed = [out] if func in IN_PLACE else []
        else:
            out = func(*args, **kwargs)
            changed = [t for t, version in given.values() if t._version != version]
        if changed:
            self._check_change(func, changed, args, out)
            self._record(OutOfPlace(func), args, kwargs, changed[0])
            self._outdate(changed[0])
            return out
        parts = list(out) if isinstance(out, (list, tuple)) else [out]
        if any(isinstance(part, Tensor) and id(part) not in self._names for part in parts):
            self._record(func, args, kwargs, out)
        return out

    def _check_change(self, func: Any, changed: list[Tensor], args: Any, out: Any) -> None:
        """Raise InputError for a call in place that has no out-of-place equivalent."""
        name = getattr(func, "__name__", str(func))
        if any(id(t) in self._names for t in changed):
            raise InputError(
                f"optimize_for_inference: the model's forward changes its own {self._names[id(changed[0])]!r} "
                f"({name}); an engine has no state."
            )
        if len(changed) > 1 or not args or changed[0] is not args[0] or not (out is None or out is changed[0]):
            raise InputError(
                f"optimize_for_inference: {name} writes into a tensor that is not its first argument; use its result."
            )

    def _outdate(self, changed: Tensor) -> None:
        """Mark all other tensors on a changed tensor's storage: their values changed without a recorded call."""
        storage = changed.untyped_storage()._cdata
        for other in self._alive:
            if other is not changed and other.untyped_storage()._cdata == storage:
                self._outdated.add(id(other))

    def _record(self, function: Callable[..., Any], args: Any, kwargs: Any, out: Any) -> None:
        dtype = _CONVERSIONS.get(function)
        if dtype == self._dtype:
            function, args = Tensor.to, (args[0], dtype)
        # References are taken before the result is registered: a call in place returns its argument.
        given, named = tree_map(self.reference, (tuple(args), kwargs))
        if isinstance(out, Tensor):
            self._add(function, given, named, out)
            return
        for k, part in enumerate(out):
            if isinstance(part, Tensor):
                self._add(GetItem(function, k), given, named, part)

    def _add(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        value = len(self.calls) + 1
        self.calls.append(TracedCall(func, args, kwargs, value, tuple(out.shape), out.is_floating_point()))
        self._values[id(out)] = value
        self._outdated.discard(id(out))
        self._alive.append(out)


_CONVERSIONS = {
    Tensor.float: torch.float32,
    Tensor.double: torch.float64,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
}


@dataclass(frozen=True)
class GetItem:
    """Item `index` of a function's result."""

    function: Callable[..., Any]
    index: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)[self.index]


@dataclass(frozen=True)
class OutOfPlace:
    """An in-place function, applied to a copy of its first argument. Returns the copy."""

    function: Callable[..., Any]

    def __call__(self, first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = first.clone()
        self.function(own, *args, **kwargs)
        return own


def trace(model: nn.Module, shape: InputShape, dtype: torch.dtype) -> Trace:
    """Run a copy of `model` on meta tensors of `shape` and `dtype`, and return the recorded calls.

    Raises:
        InputError: the model is in training mode or has hooks, its forward depends on the values of tensors, or it
            changes tensors in place in a way that has no out-of-place equivalent.
    """
    _check_traceable(model)
    try:
        # In-place changes are detected by version counters, which inference tensors lack.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            twin = meta_copy(model)
            metas = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
            xs = tuple(torch.empty(s, dtype=dtype, device="meta") for s in input_shapes(shape))
            x = xs if has_several(shape) else xs[0]
            tracer = _Tracer({id(t): name for name, t in metas.items()}, x)
            with tracer:
                output = twin(x)
    except InputError:
        raise
    except Exception as error:  # a model's forward may raise anything
        raise InputError(
            f"optimize_for_inference: the forward of {type(model).__name__} cannot be followed for an input of shape "
            f"{shape}: {str(error)[:300]}. It must take one tensor and not depend on tensors' values."
        ) from error
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise InputError(
            f"optimize_for_inference: {type(model).__name__} returned {type(output).__name__}, no tensors."
        )
    returned = tree_map(tracer.returned, output)
    shapes = {name: tuple(t.shape) for name, t in metas.items()}
    return Trace(shape, tuple(tracer.calls), returned, shapes)


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model on the meta device. Other threads may use the model itself meanwhile."""
    twins: dict[int, Any] = {id(t): t.detach().to("meta") for t in model.buffers()}
    for p in model.parameters():
        twins[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=False)
    twin = copy.deepcopy(model, twins)
    for module in twin.modules():
        if is_frozen(module):  # some multiply and add: as one call it is folded into a convolution
            module.forward = partial(_normalise_by_buffers, module)  # type: ignore[method-assign]
    return twin


def _normalise_by_buffers(module: Any, x: Tensor) -> Tensor:
    return nn.functional.batch_norm(
        x, module.running_mean, module.running_var, module.weight, module.bias, training=False, eps=module.eps
    )


def _check_traceable(model: nn.Module) -> None:
    training = [name for name, m in model.named_modules() if m.training]
    if training:
        raise InputError(
            f"optimize_for_inference: {training[0] or type(model).__name__} is in training mode; call model.eval()."
        )
    reason = hooked(list(model.modules()))
    if reason:
        raise InputError(f"optimize_for_inference: {reason}, which an engine would not call; remove it first.")
