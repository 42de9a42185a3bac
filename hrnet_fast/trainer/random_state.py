"""Random states of a process as plain data, so that a file of them is read without running code."""

from __future__ import annotations

from typing import Any

import torch

from hrnet_fast.random_states import host_random_states, restore_host_random_states, seed_host_generators
from hrnet_fast.trainer.sampler import derived_seed


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, and of the device's, as data and tensors."""
    states = host_random_states()
    version, numbers, gauss = states["random"]
    states["random"] = [version, list(numbers), gauss]
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        states["numpy"] = [kind, torch.from_numpy(keys.astype("int64")), *rest]
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Put states of :func:`random_state` back; the device's where both are CUDA devices."""
    version, numbers, gauss = states["random"]
    found = {"torch": states["torch"], "random": (version, tuple(numbers), gauss)}
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        found["numpy"] = (kind, keys.numpy().astype("uint32"), *rest)
    restore_host_random_states(found)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_steps(seed: int, rank: int, device: torch.device) -> None:
    """Seed what steps draw from, dropout for instance; each process otherwise."""
    own = derived_seed(seed, "steps", rank)
    seed_host_generators(own)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(own)
