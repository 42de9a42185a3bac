"""What a model computes, call by call: its forward on tensors without data, written down.

The recording is of one input shape: models choose by shapes (whether to interpolate at all, for instance), and a record
that pretended to hold for other shapes would change numbers in silence. Whatever code base the model is from, it says
itself what it does; nothing is guessed from names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.errors import InputError
from hrnet_fast.inference.planning.shapes import result_without_running
from hrnet_fast.nn.units import hooked


@dataclass(frozen=True)
class Ref:
    """A value that an earlier call made, or the input (0)."""

    value: int


@dataclass(frozen=True)
class Named:
    """A parameter or buffer of the model, by its name in the state_dict."""

    name: str


@dataclass(frozen=True)
class Recorded:
    """One call: what it is given (tensors as :class:`Ref` and :class:`Named`) and what it makes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int
    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True)
class Recording:
    """A forward of the model on an input of `input_shape`; `output` is its result with tensors as :class:`Ref`."""

    input_shape: tuple[int, ...]
    calls: tuple[Recorded, ...]
    output: Any


class _Recorder(TorchFunctionMode):
    def __init__(self, names: dict[int, str], x: Tensor) -> None:
        super().__init__()
        self.calls: list[Recorded] = []
        self._names = names
        self._values = {id(x): 0}
        self._alive: list[Tensor] = [x]  # ids are of living objects only

    def reference(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) in self._values:
            return Ref(self._values[id(leaf)])
        if id(leaf) in self._names:
            return Named(self._names[id(leaf)])
        raise InputError(
            "optimize_for_inference: the model's forward uses a tensor that is neither its input, a parameter nor a "
            "buffer; register it as a buffer."
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = result_without_running(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        parts = list(out) if isinstance(out, (list, tuple)) else [out]
        if not any(isinstance(part, Tensor) and id(part) not in self._names for part in parts):
            return out
        # A call in place gives its argument back: from here on, that object is the new value.
        given, named = tree_map(self.reference, (tuple(args), dict(kwargs)))
        for k, part in enumerate(parts):
            if isinstance(part, Tensor):
                self._add(func if part is out else Part(func, k), given, named, part)
        return out

    def _add(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        value = len(self.calls) + 1
        self.calls.append(Recorded(func, args, kwargs, value, tuple(out.shape), out.is_floating_point()))
        self._values[id(out)] = value
        self._alive.append(out)


@dataclass(frozen=True)
class Part:
    """One of several results of a function."""

    function: Callable[..., Any]
    index: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)[self.index]


def record(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Recording:
    """Run `model` on an input without data and write down what it calls.

    Raises:
        InputError: the model is in training mode, has hooks (an engine would not call them), or its forward depends
            on the values of tensors.
    """
    _check(model)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    metas = {name: t.detach().to("meta") for name, t in named.items()}
    x = torch.empty(shape, dtype=dtype, device="meta")
    recorder = _Recorder({id(t): name for name, t in metas.items()}, x)
    # Accelerated blocks take their plain path without data, and are not to tell of it afterwards.
    notes = [(vars(m), vars(m)["fast_note"]) for m in model.modules() if "fast_note" in vars(m)]
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), recorder:
            output = torch.func.functional_call(model, metas, (x,), tie_weights=True)
    except InputError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        raise InputError(
            f"optimize_for_inference: the forward of {type(model).__name__} cannot be followed for an input of shape "
            f"{tuple(shape)}: {str(error)[:300]}. It must take one tensor and not depend on tensors' values."
        ) from error
    finally:
        for attributes, note in notes:
            attributes["fast_note"] = note
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        raise InputError(
            f"optimize_for_inference: {type(model).__name__} returned {type(output).__name__}, no tensors."
        )
    return Recording(tuple(shape), tuple(recorder.calls), tree_map(recorder.reference, output))


def _check(model: nn.Module) -> None:
    training = [name for name, m in model.named_modules() if m.training and not list(m.children())]
    if training:
        raise InputError(
            f"optimize_for_inference: {training[0] or type(model).__name__} is in training mode; call model.eval()."
        )
    reason = hooked(list(model.modules()))
    if reason:
        raise InputError(f"optimize_for_inference: {reason}, which an engine would not call; remove it first.")
