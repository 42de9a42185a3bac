"""The class ``GraphedStep``: a whole training step as one CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel

from hrnet_fast.checks import check_bool, check_integer
from hrnet_fast.training.captured_optimizer import LearningRates
from hrnet_fast.training.host_state import HostState
from hrnet_fast.training.pytrees import UnsupportedStructureError, map_tensors, shapes_text, structure_key, unrepeatable
from hrnet_fast.training.step_arguments import check_arguments
from hrnet_fast.training.step_capture import CudaCapturer, StepCapturer, failure_text
from hrnet_fast.training.step_constants import StepConstants, lasting_refusal
from hrnet_fast.training.step_policy import Action, StepPolicy, StepReport
from hrnet_fast.training.tensor_list import gradients_of
from hrnet_fast.training.training_iteration import MicroBatch, NotCapturableError, TrainingIteration
from hrnet_fast.training.weight_average import WeightAverage

DISTRIBUTED_UPDATES = 11  # eager ones that DistributedDataParallel needs before a capture, as PyTorch documents


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
        capture_at: the call of a shape that captures it. The first update is eager in any case, as it makes the
            optimizer's state; with ``DistributedDataParallel``, the first 11 are.
        max_graphs: shapes that have graphs at the same time; each keeps the memory of its gradients, and all share
            that of activations. The least recently used is dropped first.
        branch_streams: whether a capture puts the branches of accelerated modules on parallel streams; not with
            ``DistributedDataParallel``.
        stream: the CUDA stream of eager calls and captures, a new one if None. ``DistributedDataParallel`` must have
            been made on it, under ``torch.cuda.stream(stream)``.

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
        capture_at: int = 2,
        max_graphs: int = 8,
        branch_streams: bool = True,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        check_integer("GraphedStep", "capture_at", capture_at)
        check_integer("GraphedStep", "max_graphs", max_graphs)
        check_bool("GraphedStep", branch_streams=branch_streams)
        parameter = check_arguments(model, loss, optimizer, dtype, accumulate, clip_norm, scaler, ema, stream)
        dtype = None if dtype == torch.float32 else dtype
        if dtype == torch.float16 and scaler is None:
            scaler = torch.amp.GradScaler(parameter.device.type)
        self.scaler = scaler
        self._iteration = TrainingIteration(
            model, loss, optimizer, dtype=dtype, accumulate=accumulate, clip_norm=clip_norm, scaler=scaler,
            average=None if ema is None else WeightAverage(ema, model),
        )  # fmt: skip
        self._policy = StepPolicy(capture_at, max_graphs)
        self._device, self._stream = parameter.device, stream
        self._branch_streams = branch_streams and not self._iteration.distributed
        self._capturer: StepCapturer = CudaCapturer(self._device, self._branch_streams, stream)
        self._constants: StepConstants | None = None
        self._refusal: str | None = None
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
        constants = self._constants
        assert constants is not None
        reason = self._call_refusal(constants)
        tensors: list[Tensor] = []
        if reason is None:
            try:
                structure = structure_key((images, targets), tensors)
            except UnsupportedStructureError as error:
                reason = f"images or targets hold {error}"
        if reason is not None:
            self._warn(reason)
            self._policy.ran_eagerly(None, reason)
            return self._plain(images, targets, place)
        key = self._mode(constants.model.training_modes()), structure
        action, reason = self._policy.action(key, place, lambda: shapes_text(structure), self._early())
        if action in (Action.CAPTURE, Action.REPLAY):
            try:
                self._iteration.adopt_gradients(place)
            except NotCapturableError as error:
                action, reason = Action.EAGER, str(error)
        if action is Action.CAPTURE:
            reason = self._capture(key, images, targets, place, constants) or ""
            action = Action.EAGER if reason else Action.REPLAY
        if action is Action.REPLAY:
            return self._replay(key, tensors, place)
        if action is Action.EAGER:
            self._warn(reason)
        self._policy.ran_eagerly(key, reason)
        self._prepare()
        images, targets = map_tensors(self._moved, (images, targets))
        return self._capturer.eager(lambda: self._iteration.run(images, targets, place))

    def _early(self) -> str:
        """Say why nothing may be captured yet, or nothing."""
        if self._iteration.distributed and self._updates < DISTRIBUTED_UPDATES:
            return f"the first {DISTRIBUTED_UPDATES} updates of DistributedDataParallel are eager"
        if not self._updates:
            return "the first update makes the optimizer's state"
        return "" if self._iteration.knows_gradients() else "a whole step shows which parameters have gradients"

    def _mode(self, modes: list[bool]) -> int:
        """Return a number for which modules are in training mode."""
        if modes != self._last_modes:
            self._last_modes = modes
            self._last_mode = self._modes.setdefault(tuple(modes), len(self._modes))
        return self._last_mode

    def _notice_changes(self) -> None:
        """Compare what graphs have as constants; drop them if it changed."""
        if self._constants is not None:
            change = self._constants.change()
            if change is None:
                return
            if self._policy.changed(change):
                self._warn(f"graphs are captured anew: {change}")
            if self._constants.accept_numbers():
                return
        iteration = self._iteration
        iteration.read_parameters()
        device = next(iteration.model.parameters()).device
        if device != self._device:
            self._device, self._capturer = device, CudaCapturer(device, self._branch_streams, self._stream)
        self._constants = StepConstants(iteration)
        self._refusal = lasting_refusal(iteration, device)
        iteration.rates = None
        if iteration.optimizer is not None and self._refusal is None:
            iteration.rates = LearningRates(iteration.optimizer, device)

    def _call_refusal(self, constants: StepConstants) -> str | None:
        """Say why this call can neither replay nor be followed by a capture, or None."""
        if not torch.is_grad_enabled():
            return "gradients are disabled around the call"
        if torch.is_autocast_enabled(self._device.type):
            return "the call is within torch.autocast; give GraphedStep a dtype instead"
        return self._capturer.refusal() or self._refusal or constants.model.hook()

    def _plain(self, images: Any, targets: Any, place: MicroBatch) -> Any:
        """Run as a plain loop does."""
        images, targets = map_tensors(self._moved, (images, targets))
        rates, self._iteration.rates = self._iteration.rates, None
        try:
            return self._iteration.run(images, targets, place)
        finally:
            self._iteration.rates = rates

    def _capture(self, key: Any, images: Any, targets: Any, place: MicroBatch, constants: StepConstants) -> str | None:
        """Capture a graph for the key and place. Return why there is none, or None; nothing has changed then."""
        iteration = self._iteration
        inputs = self._policy.inputs(key, lambda: map_tensors(self._static, (images, targets)))
        self._prepare()
        host = HostState(constants.model, iteration.parameters, iteration.optimizer, self.scaler)
        try:
            replay, result = self._capturer.capture(lambda: iteration.run(inputs[0], inputs[1], place, captured=True))
            reason = host.difference() or unrepeatable(result, self._device)
        except Exception as error:
            reason = failure_text(error)
        except BaseException:
            host.restore()
            raise
        if reason is not None:
            host.restore()
            return self._policy.capture_failed(key, f"the step cannot be captured: {reason}")
        static: list[Tensor] = []
        structure_key(inputs, static)
        self._policy.captured(key, place, _Graph(replay, static, result, gradients_of(iteration.parameters)))
        return None

    def _replay(self, key: Any, tensors: list[Tensor], place: MicroBatch) -> Any:
        graph: _Graph = self._policy.graph(key, place)
        for own, given in zip(graph.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        if place.last:
            self._prepare()
        graph.replay()
        # No operator of PyTorch says that the graph wrote them.
        if self._constants is not None:
            self._constants.model.buffers.increment_versions()
        if place.last and self._iteration.optimizer is not None:
            self._iteration.listed.increment_versions()
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
