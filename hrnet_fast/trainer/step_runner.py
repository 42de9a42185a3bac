"""``StepRunner``: model, optimizer, average and scaler of a run, and its step."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hrnet_fast.recipes.recipe import OptimizerRecipe, Recipe
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.step_choices import AUTOCAST, StepChoices, choose, in_format, prepare_model
from hrnet_fast.trainer.task import TrainingTask
from hrnet_fast.training import GraphedStep, explain
from hrnet_fast.training.training_iteration import MicroBatch, TrainingIteration, loss_of
from hrnet_fast.training.weight_average import WeightAverage

_OF_DEVICE = ("capturable", "foreach", "fused")  # options of an optimizer that follow from the device


class StepRunner:
    """What a step computes. The same code runs each micro-batch eagerly and in a graph.

    Args:
        task: makes model, loss and parameter groups.
        recipe: the loop and the optimizer.
        processes: each has a share of the batch. With several, gradients are averaged by ``DistributedDataParallel``.

    Attributes:
        model: the network, without a wrapper.
        optimizer: its rates are those of the recipe times :meth:`set_rate`'s factor.
        ema: the average of the weights and of the running statistics, or None.
        scaler: of float16, or None.
        choices: which fast paths are taken.

    Raises:
        ConfigError: the recipe asks for what cannot be had here.
    """

    def __init__(self, task: TrainingTask, recipe: Recipe, processes: Processes) -> None:
        loop, device = recipe.loop, processes.device
        self._device = device
        model = task.make_model()
        self.choices: StepChoices = choose(loop, model, device, processes.count)
        self.model = prepare_model(model, self.choices, loop, device)
        stream: Any = None
        if self.choices.graph and processes.count > 1:
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        trained = self._distributed(processes, loop.sync_bn, stream)
        dtype = AUTOCAST[loop.dtype]
        self.optimizer = make_optimizer(recipe.optimizer, task.parameter_groups(self.model), device, self.choices.graph)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
        self.ema: AveragedModel | None = None
        if loop.ema is not None:
            average = get_ema_multi_avg_fn(loop.ema)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        loss = task.make_loss()
        self.graphed: GraphedStep | None = None
        self._accumulate = loop.accumulate
        if self.choices.graph:
            self.graphed = GraphedStep(
                trained, loss, self.optimizer, dtype=dtype, accumulate=loop.accumulate, clip_norm=loop.clip_norm,
                scaler=self.scaler, ema=self.ema, stream=stream,
            )  # fmt: skip
        else:
            self._iteration = TrainingIteration(
                trained, loss, self.optimizer, dtype=dtype, accumulate=loop.accumulate, clip_norm=loop.clip_norm,
                scaler=self.scaler, average=None if self.ema is None else WeightAverage(self.ema, trained),
            )  # fmt: skip

    def set_rate(self, factor: float) -> None:
        """Let every group have its own rate times `factor`."""
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def run(self, images: Any, targets: Any, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute a micro-batch, and with an update's last one the update.

        Returns:
            The loss and its named parts, where the task's loss has them. They may be pending.
        """
        images = in_format(images, self.choices)
        if self.graphed is not None:
            return loss_of(self.graphed(images, targets)), {}
        place = MicroBatch(micro == 0, micro == self._accumulate - 1)
        result = self._iteration.run(images, targets, place)
        named = {name: part for name, part in result.items() if name != "loss"} if isinstance(result, dict) else {}
        return loss_of(result), named

    def explain(self) -> dict[str, Any]:
        """Return the choices, their reasons, and which blocks take the fused path."""
        found: dict[str, Any] = {
            name: {"chosen": getattr(self.choices, name), "reason": reason}
            for name, reason in self.choices.reasons.items()
        }
        if self.choices.accelerate:
            found["accelerate"]["report"] = str(explain(self.model))
        return found

    def network(self, weights: str) -> nn.Module:
        """Return the network with its weights as trained (``"raw"``) or averaged (``"ema"``)."""
        return self.model if weights == "raw" or self.ema is None else self.ema.module

    def state(self) -> dict[str, Any]:
        """Return the state to resume from: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take the state that :meth:`state` returned, on this device or another."""
        self.model.load_state_dict(state["model"])
        given, own = state["optimizer"], self.optimizer.state_dict()["param_groups"]
        groups = [
            {**then, **{name: now[name] for name in _OF_DEVICE if name in now}}
            for then, now in zip(given["param_groups"], own, strict=True)
        ]
        self.optimizer.load_state_dict({**given, "param_groups": groups})
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    def not_finite(self) -> list[str]:
        """Return names of weights and statistics that are not finite. This waits for the device."""
        named = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
        bad = torch.stack([(~torch.isfinite(v)).any() for v in named.values()])
        return [name for name, one in zip(named, bad.tolist(), strict=True) if one] if bad.any() else []

    def _distributed(self, processes: Processes, sync_bn: bool, stream: Any) -> nn.Module:
        """Return the model, wrapped where there are several processes."""
        if processes.count == 1:
            return self.model
        on_cuda = self._device.type == "cuda"
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            wrapped = DistributedDataParallel(self.model, device_ids=[self._device] if on_cuda else None)
        if stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(stream)
        if sync_bn:  # behind the wrapper, which refuses such layers on a CPU
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        return wrapped


def make_optimizer(
    recipe: OptimizerRecipe, groups: list[dict[str, Any]], device: torch.device, graph: bool
) -> optim.Optimizer:
    """Return the optimizer of a recipe; on a CUDA device its fused implementation, which a graph can contain.

    Args:
        recipe: kind and momenta.
        groups: ``params``, ``lr`` and ``weight_decay`` of each.
        device: of the parameters.
        graph: whether steps are captured.
    """
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if device.type == "cuda":
        options["fused"] = True
    if recipe.kind == "sgd":
        return optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **options)
    adam = {"adam": optim.Adam, "adamw": optim.AdamW}[recipe.kind]
    return adam(groups, betas=recipe.betas, capturable=graph, **options)  # type: ignore[no-any-return]
