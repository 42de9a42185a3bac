"""``TrainingTask``: what the loop asks of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hrnet_fast.evaluation.result import EvaluationResult


class TrainingTask(Protocol):
    """Data, network, inputs, loss and evaluation of one recipe in one folder.

    Attributes:
        train: the training samples.
        val: the samples for evaluation, or None.
        collate: samples to a batch, in the workers. A batch has ``to(device, non_blocking)``, ``len``, ``paths``,
            ``rows`` and ``skipped``.
            A task may have ``collate_crops(samples, generator)`` beside it, which the loop then takes: it draws in the
            workers what :meth:`inputs` draws, from a generator in the same state.
        best: the figure that chooses the best checkpoint.
        higher_is_better: its direction.
    """

    train: Dataset[Any]
    val: Dataset[Any] | None
    collate: Callable[[Sequence[Any]], Any]
    best: str
    higher_is_better: bool

    def make_model(self) -> nn.Module:
        """Return the network with random weights, from torch's global generator."""

    def make_loss(self) -> Callable[[Any, Any], Any]:
        """Return the loss: ``loss(outputs, targets)``, or a mapping with it as ``"loss"`` and its named parts."""

    def inputs(self, batch: Any, generator: torch.Generator) -> tuple[Any, Any]:
        """Return the network's input and the targets of a batch, on its device, without waiting for it.

        The input is images [N, 3, H, W], or the network's
        :class:`~hrnet_fast.training.training_iteration.Arguments`, which begin with them.
        """

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the optimizer's groups: ``params``, ``lr`` and ``weight_decay`` of each."""

    def evaluate(
        self,
        network: Callable[[Tensor], Any],
        device: torch.device,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> EvaluationResult:
        """Evaluate a network in evaluation mode on `val`; with several processes, each on its part."""
