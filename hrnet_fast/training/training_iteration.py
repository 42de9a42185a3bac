"""One micro-batch of a training step: forward, loss, backward and, with the last one, the update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from hrnet_fast.errors import InputError
from hrnet_fast.training.captured_optimizer import LearningRates
from hrnet_fast.training.pytrees import map_tensors
from hrnet_fast.training.tensor_list import gradients_of, tensor_list
from hrnet_fast.training.weight_average import WeightAverage


class MicroBatch(NamedTuple):
    """A micro-batch's place in its step."""

    first: bool
    last: bool

    def __str__(self) -> str:
        if self.first and self.last:
            return "the whole step"
        return "first micro-batch" if self.first else "last micro-batch" if self.last else "middle micro-batch"


class Arguments(tuple[Any, ...]):
    """Several arguments of a model; any other tuple is one argument."""


class NotCapturableError(Exception):
    """A capture shows that its graph would compute something else than the step."""


class TrainingIteration:
    """What a training step computes, in the same order eagerly and in a capture.

    Attributes:
        parameters: those whose gradients a step sets: the model's, the loss's and the optimizer's.
        distributed: whether DistributedDataParallel reduces gradients.
        rates: learning rates on the device; None for plain numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Any],
        optimizer: optim.Optimizer | None,
        *,
        dtype: torch.dtype | None,
        accumulate: int,
        clip_norm: float | None,
        scaler: Any,
        average: WeightAverage | None,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.dtype, self.accumulate, self.clip_norm = dtype, accumulate, clip_norm
        self.scaler, self.average = scaler, average
        self.distributed = isinstance(model, DistributedDataParallel)
        self.rates: LearningRates | None = None
        self.read_parameters()

    def read_parameters(self) -> None:
        """Read which parameters there are."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        updated = [p for group in groups for p in group["params"]]
        own = [p for m in (self.model, self.loss) if isinstance(m, nn.Module) for p in m.parameters()]
        self.parameters: list[Tensor] = list(dict.fromkeys([*updated, *own]))
        self.listed = tensor_list(self.parameters)
        self._clipped = updated or own
        self._shared: list[Tensor | None] | None = None
        self._have_gradients: list[bool] = []

    def knows_gradients(self) -> bool:
        """Whether an eager step showed which parameters have gradients, as graphs of micro-batches must know."""
        return self.accumulate == 1 or bool(self._have_gradients)

    def run(self, images: Any, targets: Any, place: MicroBatch, *, captured: bool = False) -> Any:
        """Compute one micro-batch; return what the loss returned, detached.

        Args:
            images: the model's argument, or its :class:`Arguments`.
            captured: whether this is within a capture. Gradients of several micro-batches are then in buffers that
                graphs share.
        """
        shares = captured and self.accumulate > 1
        # Gradients that autograd adds up itself: hooks of parameters see sums, as DistributedDataParallel's must.
        in_place = self.distributed or any(getattr(p, "_post_accumulate_grad_hooks", None) for p in self.parameters)
        if place.first or (shares and not in_place):
            self._attach([None] * len(self.parameters))
        with self._unreduced(place):
            result = self._backward(images, targets)
        if shares:
            self._share(place, in_place)
        if place.last:
            if not captured and self.accumulate > 1:
                self._have_gradients = [p.grad is not None for p in self.parameters]
            self._update(captured)
        return map_tensors(Tensor.detach, result)

    def _unreduced(self, place: MicroBatch) -> Any:
        """Let DistributedDataParallel reduce with the last micro-batch only."""
        model: Any = self.model
        return model.no_sync() if self.distributed and not place.last else contextlib.nullcontext()

    def _backward(self, images: Any, targets: Any) -> Any:
        with contextlib.ExitStack() as stack:
            if self.dtype is not None:
                device = next(self.model.parameters()).device.type
                stack.enter_context(torch.autocast(device, dtype=self.dtype))
            arguments = images if isinstance(images, Arguments) else (images,)
            result = self.loss(self.model(*arguments), targets)  # a name for the outputs would keep them in backward
        value = loss_of(result)
        if self.accumulate > 1:
            value = value / self.accumulate
        if self.scaler is not None:
            value = self.scaler.scale(value)
        value.backward()  # type: ignore[no-untyped-call]
        return result

    def _update(self, captured: bool) -> None:
        if self.clip_norm is not None:
            if self.scaler is not None and self.optimizer is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._clipped, self.clip_norm)
        if self.optimizer is not None:
            with contextlib.nullcontext() if self.rates is None else self.rates.applied():
                if self.scaler is None:
                    self.optimizer.step()
                else:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
        if self.average is not None:
            if captured:
                self.average.captured_update()
            else:
                self.average.update()

    # Gradients of several micro-batches. Eagerly they are where autograd puts them; a graph of one micro-batch needs
    # them at an address that the graphs of the others know.

    def adopt_gradients(self, place: MicroBatch) -> None:
        """Before a graph of a step with several micro-batches: have the gradients so far in the shared buffers.

        Raises:
            NotCapturableError: other parameters have gradients than in the steps before.
        """
        if self.accumulate == 1:
            return
        if self._shared is None:
            pairs = zip(self.parameters, self._have_gradients, strict=True)  # as the last eager step found them
            self._shared = [torch.empty_like(p) if has else None for p, has in pairs]
        if place.first:
            return
        with torch.no_grad():
            for p, shared in zip(self.parameters, self._shared, strict=True):
                if (p.grad is None) != (shared is None):
                    raise NotCapturableError(_DIFFERENT_PARAMETERS)
                if p.grad is not shared and shared is not None and p.grad is not None:
                    p.grad = shared.copy_(p.grad)

    def _share(self, place: MicroBatch, in_place: bool) -> None:
        """Copy or add the gradients of this micro-batch to the shared ones, unless autograd has done so."""
        assert self._shared is not None
        fresh = gradients_of(self.parameters)
        pairs = list(zip(self._shared, fresh, strict=True))
        if any((shared is None) != (own is None) for shared, own in pairs):
            raise NotCapturableError(_DIFFERENT_PARAMETERS)
        if in_place and not place.first:
            return
        into = [shared for shared in self._shared if shared is not None]
        given = [own for own in fresh if own is not None]
        with torch.no_grad():
            if place.first:
                torch._foreach_copy_(into, given)
            else:
                torch._foreach_add_(into, given)
        self._attach(self._shared)

    def attach_gradients(self, found: list[Tensor | None]) -> None:
        """Behind a replay: let the parameters have the gradients that the graph wrote, if they have others."""
        if not self.listed.have_gradients(found):
            self._attach(found)

    def _attach(self, gradients: Sequence[Tensor | None]) -> None:
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient


_DIFFERENT_PARAMETERS = "other parameters receive gradients than in the micro-batches before"


def loss_of(result: Any) -> Tensor:
    """Return the tensor to differentiate: the result itself, its first element, or its entry ``"loss"``.

    Raises:
        InputError: there is none, or it has more than one element.
    """
    found = result
    if isinstance(result, (tuple, list)) and result:
        found = result[0]
    elif isinstance(result, dict):
        found = result.get("loss")
    if not isinstance(found, Tensor) or found.numel() != 1:
        what = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(result).__name__
        raise InputError(
            f"GraphedStep: the loss returned {what}; accepted are a tensor of one element, a tuple or list that begins "
            "with it, and a dict that has it as 'loss'."
        )
    return found
