"""Weights of RGB networks for networks of other input channels, as timm adapts them (``adapt_input_conv``)."""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.errors import CheckpointError

FIRST = "conv1.weight"


def adapt_input(state: dict[str, Tensor], channels: int, notes: list[str]) -> dict[str, Tensor]:
    """Return `state` with its first convolution for `channels` input channels; the same where it has these already.

    One channel gets the sum over R, G and B: the answer is that to the grey picture in all three. Others repeat R, G,
    B, R, ... and are scaled by 3 / channels, which keeps the size of activations.

    Args:
        state: a canonical state_dict.
        channels: of the network's input.
        notes: takes one line that says what was done.

    Raises:
        CheckpointError: the weights are not those of an RGB network.
    """
    weight = state[FIRST]
    given = weight.shape[1]
    if given == channels or weight.layout != torch.strided or not weight.is_floating_point():
        return state  # what is no weight at all is refused with all its like
    if given != 3:
        raise CheckpointError(
            f"in_channels={channels}: the checkpoint's network takes {given} channels, and only RGB weights (3) are "
            "adapted to others; leave in_channels out.",
            mismatched=((FIRST, tuple(weight.shape), (weight.shape[0], channels, *weight.shape[2:])),),
        )
    wide = weight.float() if weight.dtype.itemsize < 4 else weight
    if channels == 1:
        adapted, how = wide.sum(dim=1, keepdim=True), "summed over R, G and B"
    else:
        adapted = wide[:, [k % 3 for k in range(channels)]] * (3 / channels)
        how = f"R, G and B repeated, times 3/{channels}"
    notes.append(f"{FIRST} adapted from 3 to {channels} input channels, as timm does: {how}")
    return state | {FIRST: adapted.to(weight.dtype)}
