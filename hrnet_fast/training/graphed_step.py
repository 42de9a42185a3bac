"""The class ``GraphedStep``: a whole training step as one CUDA graph."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel

from hrnet_fast.checks import check_bool, check_integer, check_module, check_number
from hrnet_fast.errors import InputError, shown
from hrnet_fast.training.captured_optimizer import LearningRates
from hrnet_fast.training.host_state import HostState
from hrnet_fast.training.model_state import gradients_of
from hrnet_fast.training.step_capture import CudaCapturer, StepCapturer
from hrnet_fast.training.step_constants import StepConstants, lasting_refusal
from hrnet_fast.training.step_policy import Action, StepPolicy, StepReport
from hrnet_fast.training.structures import UnsupportedStructureError, describe, map_tensors, shapes_text, unrepeatable
from hrnet_fast.training.training_iteration import MicroBatch, NotCapturableError, TrainingIteration
from hrnet_fast.training.weight_average import WeightAverage

DTYPES = (None, torch.float32, torch.bfloat16, torch.float16)
DISTRIBUTED_CALLS = 12  # DistributedDataParallel needs 11 eager calls before a capture


class GraphedStepWarning(UserWarning):
    """Calls of a :class:`GraphedStep` run eagerly, for the reason that the message gives."""


class _Graph(NamedTuple):
    """A graph of one micro-batch: its replay, what that reads, and the result and gradients that it overwrites."""

    replay: Callable[[], None]
    inputs: list[Tensor]
    result: Any
    gradients: list[Tensor | None]


class GraphedStep:
    """A training step for any model and any loop: ``loss = step(images, targets)``.

    One call is forward, loss, backward, clipping of gradients, the optimizer's step and the average of weights. On a
    CUDA device, a shape that comes again is captured as one CUDA graph, and replayed from then on: the host copies the
    inputs and launches once. What cannot be captured runs eagerly, with the same results; a
    :class:`GraphedStepWarning` and :meth:`explain` say why. On other devices every call is eager.

    Gradients are set, not added, by the first micro-batch of a step: ``zero_grad()`` is not needed. They remain in
    ``grad`` behind the step. Gradient clipping and the optimizer see the mean over the micro-batches.

    Numbers that the loss or the model read from Python are constants in a graph, unless they are attributes of
    modules: when an attribute, a hyperparameter, a training mode or a parameter's memory changes, graphs are captured
    anew. A learning rate may change at any time. After a change that nothing shows (a global variable), call
    :meth:`reset`. This has not run on a GPU yet.

    Args:
        model: called as ``model(images)``; plain or accelerated, also in ``DistributedDataParallel``.
        loss: called as ``loss(outputs, targets)``. Returns a tensor of one element; or a tuple or list that begins
            with it, or a dict that has it as ``"loss"``, beside other tensors.
        optimizer: ``torch.optim.SGD``, or an optimizer with ``capturable=True``; None leaves the update to the caller,
            who finds gradients in ``grad``.
        dtype: ``torch.bfloat16`` or ``torch.float16``: of autocast, for model and loss. None leaves it off.
        accumulate: micro-batches for each update. Each call is one of them.
        clip_norm: largest norm of all gradients together (``torch.nn.utils.clip_grad_norm_``).
        scaler: a ``torch.amp.GradScaler``; for float16, one is made if none is given (attribute ``scaler``).
        ema: a ``torch.optim.swa_utils.AveragedModel`` of the model, moved behind each update. Captured if it has a
            ``multi_avg_fn`` that reads nothing on the host, as ``get_ema_multi_avg_fn(decay)``.
        capture_at: the call of a shape that captures it; 2, or 12 for ``DistributedDataParallel``.
        max_graphs: shapes that have graphs at the same time; each keeps the memory of its gradients, and all share
            that of activations. The least recently used is dropped first.
        branch_streams: whether a capture puts the branches of accelerated modules on parallel streams; not with
            ``DistributedDataParallel``.

    Raises:
        InputError: an argument of another kind, or arguments that exclude each other.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Any],
        optimizer: optim.Optimizer | None = None,
        *,
        dtype: torch.dtype | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        scaler: Any = None,
        ema: AveragedModel | None = None,
        capture_at: int | None = None,
        max_graphs: int = 8,
        branch_streams: bool = True,
    ) -> None:
        what = "GraphedStep"
        check_module(what, model)
        if not callable(loss):
            raise InputError(f"{what}: loss={shown(loss)}; accepted is a function loss(outputs, targets).")
        if optimizer is not None and not isinstance(optimizer, optim.Optimizer):
            raise InputError(f"{what}: optimizer={shown(optimizer)}; accepted is a torch.optim.Optimizer or None.")
        if dtype not in DTYPES:
            raise InputError(f"{what}: dtype={shown(dtype)}; accepted are None, torch.bfloat16 and torch.float16.")
        if clip_norm is not None:
            check_number(what, "clip_norm", clip_norm)
        if ema is not None and not isinstance(ema, AveragedModel):
            raise InputError(f"{what}: ema={shown(ema)}; accepted is a torch.optim.swa_utils.AveragedModel.")
        check_integer(what, "accumulate", accumulate)
        check_integer(what, "max_graphs", max_graphs)
        check_bool(what, branch_streams=branch_streams)
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise InputError(f"{what}: {type(model).__name__} has no parameters to train.")
        dtype = None if dtype == torch.float32 else dtype
        if dtype == torch.float16 and scaler is None and optimizer is not None:
            scaler = torch.amp.GradScaler(parameter.device.type)
        if optimizer is None and (ema is not None or (clip_norm is not None and scaler is not None)):
            raise InputError(
                f"{what}: without an optimizer there is no update: ema, and clip_norm with a scaler, need one."
            )
        if dtype == torch.float16 and scaler is None:
            raise InputError(
                f"{what}: float16 without an optimizer needs scaler=, a torch.amp.GradScaler that you step."
            )
        self.scaler = scaler
        self._iteration = TrainingIteration(
            model, loss, optimizer, dtype=dtype, accumulate=accumulate, clip_norm=clip_norm, scaler=scaler,
            average=None if ema is None else WeightAverage(ema, model),
        )  # fmt: skip
        least = DISTRIBUTED_CALLS if self._iteration.distributed else 1
        check_integer(what, "capture_at", max(2, least) if capture_at is None else capture_at, least)
        self._policy = StepPolicy(capture_at or max(2, least), max_graphs)
        self._branch_streams = branch_streams and not self._iteration.distributed
        self._device = parameter.device
        self._capturer: StepCapturer = CudaCapturer(self._device, self._branch_streams)
        self._constants: StepConstants | None = None
        self._modes: dict[tuple[bool, ...], int] = {}
        self._last_modes: list[bool] = []
        self._last_mode = -1
        self._calls, self._updates = 0, 0  # calls within a step, and steps
        self._warned: set[str] = set()

    def __call__(self, images: Any, targets: Any) -> Any:
        """Run one micro-batch, and the update behind the last one of a step.

        Args:
            images: what the model takes, usually a tensor [N, 3, H, W].
            targets: what the loss takes. Both may be tensors, or tuples, lists and dicts of tensors and constants.
                Tensors on other devices are copied to the model's, asynchronously from pinned memory.

        Returns:
            What the loss returned, detached: a copy that later calls leave alone.

        Raises:
            InputError: the loss returned no loss.
            Exception: whatever model, loss and optimizer raise when they run eagerly.
        """
        accumulate = self._iteration.accumulate
        place = MicroBatch(self._calls == 0, self._calls == accumulate - 1)
        self._notice_changes()
        with self._capturer.here():
            result = self._run(images, targets, place)
        self._calls = (self._calls + 1) % accumulate
        self._updates += place.last
        return result

    def explain(self) -> StepReport:
        """Return what the calls did: captures, replays, eager calls and their reasons."""
        return self._policy.report()

    def reset(self) -> None:
        """Drop all graphs, and begin a new step with the next call. The next calls capture anew."""
        self._policy.reset()
        self._constants = None
        self._calls = 0

    def _run(self, images: Any, targets: Any, place: MicroBatch) -> Any:
        reason = self._call_refusal()
        tensors: list[Tensor] = []
        if reason is None:
            try:
                structure = describe((images, targets), tensors)
            except UnsupportedStructureError as error:
                reason = f"images or targets hold {error}"
        if reason is not None:
            return self._plain(images, targets, place, reason)
        assert self._constants is not None
        key = self._mode(self._constants.model.training_modes()), structure
        action, reason = self._policy.action(key, place, lambda: _shape_text(structure), self._updates > 0)
        if action in (Action.CAPTURE, Action.REPLAY):
            try:
                self._iteration.adopt_gradients(place)
            except NotCapturableError as error:
                action, reason = Action.EAGER, str(error)
        if action is Action.CAPTURE:
            reason = self._capture(key, images, targets, place) or ""
            action = Action.EAGER if reason else Action.REPLAY
        if action is Action.REPLAY:
            return self._replay(key, tensors, place)
        if action is Action.EAGER:
            self._warn(reason)
        self._policy.ran_eagerly(key, reason)
        self._prepare()
        images, targets = map_tensors(self._moved, (images, targets))
        return self._capturer.eager(lambda: self._iteration.run(images, targets, place))

    def _mode(self, modes: list[bool]) -> int:
        """Return a number for which modules are in training mode."""
        if modes != self._last_modes:
            self._last_modes = modes
            self._last_mode = self._modes.setdefault(tuple(modes), len(self._modes))
        return self._last_mode

    def _notice_changes(self) -> None:
        """Drop the graphs if something that they have as a constant changed."""
        iteration = self._iteration
        change = None if self._constants is None else self._constants.change()
        if change is not None:
            self._constants = None
            self._policy.changed(change)
            self._warn(f"graphs are captured anew: {change}")
        if self._constants is None:
            iteration.read_parameters()
            device = next(iteration.model.parameters()).device
            if device != self._device:
                self._device, self._capturer = device, CudaCapturer(device, self._branch_streams)

    def _call_refusal(self) -> str | None:
        """Say why this call can neither replay nor be followed by a capture, or None."""
        if not torch.is_grad_enabled():
            return "gradients are disabled around the call"
        if torch.is_autocast_enabled(self._device.type):
            return "the call is within torch.autocast; give GraphedStep a dtype instead"
        iteration = self._iteration
        if self._constants is None:
            reason = self._capturer.refusal() or lasting_refusal(iteration, self._device)
            if reason is not None:
                return reason
            self._constants = StepConstants(iteration)
            if iteration.optimizer is not None:
                iteration.rates = LearningRates(iteration.optimizer, self._device)
        return self._constants.model.hook()

    def _plain(self, images: Any, targets: Any, place: MicroBatch, reason: str) -> Any:
        """Run as a plain loop does."""
        self._warn(reason)
        self._policy.ran_eagerly(None, reason)
        images, targets = map_tensors(self._moved, (images, targets))
        rates, self._iteration.rates = self._iteration.rates, None
        try:
            return self._iteration.run(images, targets, place)
        finally:
            self._iteration.rates = rates

    def _capture(self, key: Any, images: Any, targets: Any, place: MicroBatch) -> str | None:
        """Capture a graph for the key and place. Return why there is none, or None; nothing has changed then."""
        iteration = self._iteration
        assert self._constants is not None
        inputs = self._policy.inputs(key, lambda: map_tensors(self._static, (images, targets)))
        self._prepare()
        host = HostState(self._constants.model, iteration.parameters, iteration.optimizer, self.scaler)
        try:
            replay, result = self._capturer.capture(lambda: iteration.run(inputs[0], inputs[1], place, captured=True))
            reason = host.difference() or unrepeatable(result, self._device)
        except Exception as error:
            reason = _failure(error)
        except BaseException:
            host.restore()
            raise
        if reason is not None:
            host.restore()
            return self._policy.capture_failed(key, f"the step cannot be captured: {reason}")
        static: list[Tensor] = []
        describe(inputs, static)
        self._policy.captured(key, place, _Graph(replay, static, result, gradients_of(iteration.parameters)))
        return None

    def _replay(self, key: Any, tensors: list[Tensor], place: MicroBatch) -> Any:
        graph: _Graph = self._policy.graph(key, place)
        for own, given in zip(graph.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        if place.last:
            self._prepare()
        graph.replay()
        self._policy.replayed(key)
        self._iteration.attach_gradients(graph.gradients)
        if place.last and self._iteration.average is not None:
            self._iteration.average.replayed()
        return map_tensors(self._capturer.given, graph.result)

    def _prepare(self) -> None:
        """Write to the device what changed on the host: learning rates, the number of averaged models."""
        if self._iteration.rates is not None:
            self._iteration.rates.refresh()
        if self._iteration.average is not None:
            self._iteration.average.prepare(self._device)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _static(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=self._device)

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            text = f"GraphedStep runs eagerly: {reason}. Further calls for this reason are counted in explain()."
            warnings.warn(text, GraphedStepWarning, stacklevel=4)


def _shape_text(structure: Any) -> str:
    images, targets = structure[1:]
    return f"images {shapes_text(images)}, targets {shapes_text(targets)}"


def _failure(error: Exception) -> str:
    """Return what a capture raised, and the last line of it that is neither PyTorch's nor this package's."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(f"{os.sep}{name}{os.sep}" in f.filename for name in ("torch", "hrnet_fast"))]
    place = f" at {os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else ""
    hint = "; a value is read on the host there (item(), bool(), boolean indices)" if "captur" in text else ""
    return f"{type(error).__name__}: {text}{place}{hint}"
