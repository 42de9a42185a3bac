"""States of the random generators of a process: Python's, NumPy's and torch's."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch


def host_random_states() -> dict[str, Any]:
    """Return the states of the host's generators; NumPy's only where NumPy is imported."""
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "random": random.getstate()}
    if "numpy.random" in sys.modules:
        import numpy as np

        states["numpy"] = np.random.get_state()
    return states


def restore_host_random_states(states: dict[str, Any]) -> None:
    """Put states of :func:`host_random_states` back."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["random"])
    if "numpy" in states:
        import numpy as np

        np.random.set_state(states["numpy"])


@contextlib.contextmanager
def kept_host_random_states() -> Iterator[None]:
    """Leave the host's generators as they are before the context."""
    states = host_random_states()
    try:
        yield
    finally:
        restore_host_random_states(states)


def seed_host_generators(seed: int) -> None:
    """Seed the host's generators; those of devices are left alone.

    Args:
        seed: from 0 to 2**63 - 1; NumPy takes the lower 32 bits.
    """
    import numpy as np

    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
