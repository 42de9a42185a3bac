"""Parts of a model that engines execute in their place; the model's class, keys and parameters stay."""

from __future__ import annotations

import copy
import copyreg
import functools
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hrnet_fast.errors import InputError
from hrnet_fast.inference.engine import Engine
from hrnet_fast.inference.model_parts import Part
from hrnet_fast.training.matching import hooked


class EnginePart(nn.Module):
    """The base of the classes that such parts get; a class has one instance.

    Attributes:
        replaced_class: the class that the module had, and gets again by :func:`hrnet_fast.restore`.
        part_execution: its engine, and when that runs.
    """

    replaced_class: type[nn.Module]
    part_execution: PartExecution

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module's own forward returns for these arguments."""
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        execution = None if tracing else self.part_execution.ready_for(args, kwargs)
        if execution is None:
            return self.replaced_class.forward(self, *args, **kwargs)
        return execution()

    def engine_state(self) -> tuple[bool, str]:
        """Return whether the engine executes this part as it stands now, and why not."""
        return self.part_execution.state()

    def __copy__(self) -> Any:
        return copy.copy(self.part_execution.own)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.part_execution.own, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = self.part_execution.own.__reduce_ex__(protocol)
        make, args, *state = made
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]  # which pickles objects of its own class only
            make, args = copyreg._reconstructor, (*args, object, None)  # type: ignore[attr-defined]
        return (make, args, *state)


class PartExecution:
    """A part's engine, and whether it can give what a call asks for.

    Args:
        own: the part as :func:`as_it_was` returns it.
        part: how it is called.
        engine: made of it.
    """

    def __init__(self, own: nn.Module, part: Part, engine: Engine) -> None:
        self.own, self.part, self.engine = own, part, engine
        self._modules = list(own.modules())
        self._parameters = list(own.parameters())
        self._unhooked_at = -1  # the number of the next hook of the process when there was none inside the part
        self._last_reason: str | None = None
        self._warned: set[str] = set()

    def ready_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
        """Return what executes a call by the engine, or None where the part's own forward has to.

        Raises:
            InputError: the model was moved to another device or dtype.
        """
        tensors = self.part.signature.tensors(args, kwargs)
        self._last_reason = self._unsupported(tensors)
        if tensors is None or self._last_reason is not None:
            return None
        self._check_place()
        x = tensors[0] if len(tensors) == 1 else tuple(tensors)
        return functools.partial(self.engine, x)

    def state(self) -> tuple[bool, str]:
        """Return whether the engine executes the part as it stands now, and why not, or not at the last call."""
        reason = self._training() or (self._last_reason and f"at the last call: {self._last_reason}")
        return not reason, reason or ""

    def _unsupported(self, tensors: list[Tensor] | None) -> str | None:
        reason = self._training()
        if reason is not None:
            return reason
        if tensors is None:
            return self._warn("it is called with other arguments than when its engine was made")
        if any(type(t) is not Tensor and type(t) is not nn.Parameter for t in tensors) or tensors[0].is_meta:
            return "its input has no data, or is of a subclass of Tensor"
        number = RemovableHandle.next_id  # PyTorch numbers all hooks in the order of registration
        if number != self._unhooked_at:
            reason = hooked(self._modules[1:])
            if reason is not None:
                return self._warn(reason)
            self._unhooked_at = number
        if torch.is_grad_enabled() and (_require_grad(tensors) or _require_grad(self._parameters)):
            return self._warn(
                "gradients are enabled and it, or its input, requires them; call the model under torch.no_grad()"
            )
        return None

    def _training(self) -> str | None:
        return "it, or a module in it, is in training mode" if any(map(attrgetter("training"), self._modules)) else None

    def _warn(self, reason: str) -> str:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(
                f"hrnet_fast: {self.part.name or type(self.own).__name__} runs its own forward in place of its engine: "
                f"{reason}.",
                stacklevel=2,
            )
        return reason

    def _check_place(self) -> None:
        parameter = next(self.own.parameters(), None)
        place = (self.engine.device, self.engine.result_dtype)
        if parameter is not None and (parameter.device, parameter.dtype) != place:
            raise InputError(
                f"{self.part.name or type(self.own).__name__}: now on {parameter.device} in {parameter.dtype}; its "
                f"engine is on {self.engine.device} for {self.engine.result_dtype}. Call optimize_for_inference again "
                "after a move, or hf.restore(model)."
            )


def _require_grad(tensors: list[Any]) -> bool:
    return any(map(attrgetter("requires_grad"), tensors))


def as_it_was(module: nn.Module) -> nn.Module:
    """Return an object of a module's present class that shares all its attributes with it."""
    own: nn.Module = object.__new__(type(module))
    object.__setattr__(own, "__dict__", vars(module))
    return own


def execute_by_engine(module: nn.Module, execution: PartExecution) -> None:
    """Let a module execute by its engine, in place."""
    base = type(module)
    members = {
        "replaced_class": base,
        "part_execution": execution,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    module.__class__ = type(base.__name__, (EnginePart, base), members)
