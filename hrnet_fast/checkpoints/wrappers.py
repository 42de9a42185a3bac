"""From whatever a training script saved to one flat mapping of names to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.errors import CheckpointError

# Where the known training loops keep the weights inside what they save, in order of preference.
WRAPPER_KEYS = ("state_dict", "model", "model_state_dict", "model_state", "net", "best_state_dict")
PREFIXES = ("module.", "model.", "_orig_mod.", "1.")  # the last is the authors' wrapper for half precision
# Entries of full training modules that are no weights of the network.
DROPPED = ("loss.", "criterion.", "data_preprocessor.", "ema_")


def unwrap(data: Any, notes: list[str]) -> dict[str, Tensor]:
    """Return the flat state_dict inside `data`; what was left out is said in `notes`.

    Raises:
        CheckpointError: nothing there that maps names to tensors.
    """
    for _ in range(4):
        if not isinstance(data, Mapping):
            break
        inner = next((k for k in WRAPPER_KEYS if isinstance(data.get(k), Mapping)), None)
        if inner is None:
            break
        data = data[inner]
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"A checkpoint is a mapping of names to tensors, or wraps one under {', '.join(WRAPPER_KEYS)}; "
            f"{type(data).__name__} given. For a module, pass its state_dict()."
        )
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    others = [str(k) for k, v in data.items() if not isinstance(v, Tensor)]
    if not tensors:
        raise CheckpointError(f"The checkpoint holds no tensor; its entries are {_shown(others) or 'none'}.")
    if others:
        notes.append(f"ignored entries that are no tensors: {_shown(others)}")
    return _drop(_strip(tensors), notes)


def _strip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers' prefixes. Entries outside the wrapped model (a loss's buffers) have none and stay."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            inside = [k for k in state if k.startswith(prefix)]
            outside = [k for k in state if not k.startswith(prefix)]
            if inside and all(k.startswith(DROPPED) or "." not in k for k in outside):
                state = {k.removeprefix(prefix): v for k, v in state.items()}
                stripped = True
    return state


def _drop(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    dropped = [k for k in state if k.startswith(DROPPED) or ".loss_" in k]
    if dropped:
        notes.append(f"dropped entries that are no weights of the network: {_shown(dropped)}")
    return {k: v for k, v in state.items() if k not in set(dropped)}


def _shown(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def absolute_scales(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Turn the scales of a ``torch04`` segmentation file into those of ordinary batch normalisation.

    The authors' PyTorch 0.4 release normalised in place with ``|w| + eps`` for a scale, in training and inference
    (InPlaceABN, ``eps = 1e-5``).
    """
    scales = {k.removesuffix("running_mean") + "weight" for k in state if k.endswith(".running_mean")}
    out = dict(state)
    for key in scales & set(state):
        out[key] = (state[key].to(torch.float64).abs() + eps).to(state[key].dtype)
    return out
