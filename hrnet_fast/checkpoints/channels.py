"""Adapting RGB weights to another number of input channels, as timm's ``adapt_input_conv`` does."""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.errors import CheckpointError

FIRST = "conv1.weight"


def adapt_input(state: dict[str, Tensor], channels: int, notes: list[str]) -> dict[str, Tensor]:
    """Return `state` with its first convolution adapted to `channels` input channels; unchanged if it has them.

    For one channel the weights are summed over R, G and B, so a grey image gives the result of the same image in all
    three channels. For other numbers the weights repeat as R, G, B, R, ..., scaled by 3 / channels to keep the
    magnitude of activations.

    Args:
        state: a canonical state_dict.
        channels: input channels of the network.
        notes: receives one line on the adaptation.

    Raises:
        CheckpointError: the weights do not take three channels.
    """
    weight = state[FIRST]
    given = weight.shape[1]
    if given == channels or weight.layout != torch.strided or not weight.is_floating_point():
        return state  # check_state reports it together with other such entries
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
