"""``unwrap``: from the structure that a training script saved to one flat mapping of names to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints.weight_selection import (
    AVERAGED_MODEL,
    RAW_KEYS,
    WeightCandidates,
    WeightSelector,
    find_flat_weights,
    find_wrapped_weights,
    stored_weights,
)
from hrnet_fast.errors import CheckpointError, some_of

PREFIXES = ("module.", "model.", "_orig_mod.", "1.")  # the last is the authors' wrapper for half precision
# Entries of training modules that are no weights of the network.
DROPPED = ("loss.", "criterion.", "data_preprocessor.")


def unwrap(data: Any, notes: list[str], weights: str = "auto") -> dict[str, Tensor]:
    """Return the flat state_dict inside `data`.

    Args:
        data: content of a file: a mapping, wrapped or not, or a pickled module.
        notes: receives lines on entries that are left out.
        weights: ``"auto"``, ``"raw"`` or ``"ema"``; see :func:`parse_checkpoint`.

    Raises:
        CheckpointError: `data` contains no mapping of names to tensors, or lacks the requested weights.
    """
    selector = WeightSelector(weights, notes)
    found = stored_weights(data)
    if found is not None:
        selector.note_module(found)
        data = found.state
    for _ in range(5):
        candidates = find_wrapped_weights(data) if isinstance(data, Mapping) else None
        if candidates is None:
            break
        outer, data = data, selector.select(candidates)
        _note_unused_weights(outer, candidates, data, notes)
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"A checkpoint is a mapping of names to tensors, or wraps one under {', '.join(RAW_KEYS)}; "
            f"{type(data).__name__} given. For a module, pass its state_dict()."
        )
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    others = [str(k) for k, v in data.items() if not isinstance(v, Tensor)]
    if not tensors:
        raise CheckpointError(f"The checkpoint holds no tensor; its entries are {some_of(others) or 'none'}.")
    if others:
        notes.append(f"ignored entries that are no tensors: {some_of(others)}")
    tensors = _strip_prefixes(tensors)  # the wrapper's prefix is common to weights and averages
    inside = find_flat_weights(tensors)
    if inside is not None:
        tensors = _strip_prefixes(dict(selector.select(inside)))
    selector.finish()
    return _drop_non_weights(tensors, notes)


def _note_unused_weights(
    data: Mapping[Any, Any], candidates: WeightCandidates, taken: Mapping[Any, Any], notes: list[str]
) -> None:
    """Note weights under a key that no known training loop uses, which `weights` cannot select."""
    known = {place.where for place in (candidates.raw, candidates.ema) if place is not None}
    memory = {_memory_key(v) for v in taken.values() if isinstance(v, Tensor)}
    rest = []
    for key, value in data.items():
        inner = None if repr(key) in known else stored_weights(value)
        tensors = [v for v in inner.state.values() if isinstance(v, Tensor)] if inner else []
        if len(tensors) >= max(2, len(taken) // 2) and not memory.issuperset(map(_memory_key, tensors)):
            rest.append(repr(key))
    if rest:
        notes.append(f"left out other weights that the checkpoint holds: {some_of(rest)}")


def _memory_key(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers. Entries outside the wrapped model (buffers of a loss) keep their names."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if prefix == "module." and AVERAGED_MODEL in state:
                continue  # the prefix identifies an AveragedModel
            inside = [k for k in state if k.startswith(prefix)]
            outside = [k for k in state if not k.startswith(prefix)]
            if inside and all(k.startswith(DROPPED) or "." not in k for k in outside):
                state = {k.removeprefix(prefix): v for k, v in state.items()}
                stripped = True
    return state


def _drop_non_weights(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    dropped = [k for k in state if k.startswith(DROPPED) or ".loss_" in k or (k.startswith("ema_") and "." not in k)]
    if dropped:
        notes.append(f"dropped entries that are no weights of the network: {some_of(dropped)}")
    return {k: v for k, v in state.items() if k not in set(dropped)}


def absolute_scales(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Convert the scales of a ``torch04`` segmentation file to those of batch normalisation.

    InPlaceABN in the authors' PyTorch 0.4 release scales by ``|w| + eps`` in training and inference (``eps = 1e-5``).
    """
    scales = {k.removesuffix("running_mean") + "weight" for k in state if k.endswith(".running_mean")}
    out = dict(state)
    for key in scales & set(state):
        out[key] = (state[key].to(torch.float64).abs() + eps).to(state[key].dtype)
    return out
