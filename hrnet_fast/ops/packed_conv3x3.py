"""Weights of ``grouped_conv3x3``: their checks, and their packed form for any number of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hrnet_fast.checks import check_tensors
from hrnet_fast.errors import InputError
from hrnet_fast.kernels.packing import pack
from hrnet_fast.ops.common import check_bias, check_dtype, check_like

NAME = "grouped_conv3x3"
MAX_BRANCHES = 8


@dataclass(frozen=True)
class PackedConv3x3:
    """Weights and biases of the branches as the kernel reads them; :func:`pack_grouped_conv3x3` makes one.

    Attributes:
        weight: all weights, in one tensor of one dimension.
        bias: all biases, in float32 (float64 beside such weights); zero where there is none.
        channels: (C_out, C_in) of each branch.
    """

    weight: Tensor
    bias: Tensor
    channels: tuple[tuple[int, int], ...]


def pack_grouped_conv3x3(weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None) -> PackedConv3x3:
    """Return weights and biases, as :func:`grouped_conv3x3` takes them, copied once for any number of calls.

    Raises:
        InputError: weights or biases that do not fit.
    """
    given = check_tensors(NAME, "weights", weights)
    check_weights(given)
    return PackedConv3x3(*pack(given, checked_biases(given, biases)), tuple((w.shape[0], w.shape[1]) for w in given))


def each(given: Sequence[Tensor | None] | None, n: int, what: str) -> list[Tensor | None]:
    """Return one of `given`, or None, for each of `n` branches."""
    given = None if given is None else check_tensors(NAME, what, given, optional=True)
    if given is not None and len(given) != n:
        raise InputError(f"{NAME}: {len(given)} {what} for {n} branches; give one, or None, for each.")
    return [None] * n if given is None else list(given)


def check_weights(weights: list[Tensor]) -> None:
    """Raise InputError unless all are 3x3 weights of one dtype and device."""
    if not 1 <= len(weights) <= MAX_BRANCHES:
        raise InputError(f"{NAME}: {len(weights)} weights given; 1 to {MAX_BRANCHES} are accepted.")
    check_dtype(NAME, weights[0])
    for k, weight in enumerate(weights):
        if weight.dim() != 4 or tuple(weight.shape[2:]) != (3, 3) or 0 in weight.shape:
            raise InputError(f"{NAME}: weight {k} has shape {tuple(weight.shape)}; it must be [C_out, C_in, 3, 3].")
        check_like(NAME, f"weight {k}", weight, weights[0])


def checked_biases(weights: list[Tensor], biases: Sequence[Tensor | None] | None) -> list[Tensor | None]:
    """Return one for each weight, or None.

    Raises:
        InputError: too few or too many, or one that does not fit its weight.
    """
    given = each(biases, len(weights), "biases")
    for k, bias in enumerate(given):
        check_bias(NAME, f"bias {k}", bias, weights[k].shape[0], weights[k].device)
    return given
