"""Random weights under the names of a checkpoint family, used where no trained checkpoint is given."""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.checkpoints.comparison import expected_shapes
from hrnet_fast.checkpoints.families import get_family
from hrnet_fast.config import HRNetConfig


def random_weights(config: HRNetConfig, family: str, seed: int = 0) -> dict[str, Tensor]:
    """Return a state_dict of `config` under `family`'s names, the same for the same seed.

    Scales keep the magnitude of activations through the network. Running statistics differ from their initial values,
    so that an execution that ignored them would give other results.
    """
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in expected_shapes(config).items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.long)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        elif key.endswith(("running_mean", "bias")):
            state[key] = 0.1 * torch.randn(shape, generator=generator)
        elif len(shape) == 1:
            state[key] = 0.5 + 0.5 * torch.rand(shape, generator=generator)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[key] = 0.8 * torch.randn(shape, generator=generator) / fan_in**0.5
    return get_family(family).from_canonical(state)
