"""The loss of networks with several outputs, such as OCR's auxiliary and main logits: a weighted sum of losses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hrnet_fast.checks import check_module, check_numbers, check_tensors
from hrnet_fast.errors import InputError


class AuxiliaryLoss(nn.Module):
    """The sum of the losses of all outputs, each times its weight.

    The authors' ``LOSS.BALANCE_WEIGHTS`` (OCR branch of the segmentation repository, ``lib/core/criterion.py``). With
    their OHEM, auxiliary outputs have plain cross entropy, whose sum is divided by the number of all pixels::

        AuxiliaryLoss(OHEMCrossEntropyLoss(w), PixelCrossEntropyLoss(w, divide_by="pixels"))

    Args:
        loss: of the last output, called with the output and the labels.
        auxiliary: the loss of all other outputs; `loss` by default.
        weights: one for each output, in their order.

    Raises:
        InputError: arguments of other types.
    """

    def __init__(
        self, loss: nn.Module, auxiliary: nn.Module | None = None, weights: Sequence[float] = (0.4, 1.0)
    ) -> None:
        super().__init__()
        check_module("AuxiliaryLoss", loss)
        if auxiliary is not None:
            check_module("AuxiliaryLoss", auxiliary)
        self.weights = check_numbers("AuxiliaryLoss", "weights", weights)
        self.loss = loss
        self.auxiliary = loss if auxiliary is None else auxiliary

    def forward(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return the loss of `outputs`, a list or tuple of tensors.

        Raises:
            InputError: another number of outputs than of weights, or what the losses raise.
        """
        given = check_tensors("AuxiliaryLoss", "outputs", outputs)
        if len(given) != len(self.weights):
            raise InputError(
                f"AuxiliaryLoss: {len(given)} outputs for {len(self.weights)} weights {self.weights}; give as many."
            )
        *others, last = zip(self.weights, given, strict=True)
        total: Tensor = last[0] * self.loss(last[1], labels)
        for weight, output in others:
            total = total + weight * self.auxiliary(output, labels)
        return total

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
