"""Golden cases: weights and inputs as functions of names and shapes, and what upstream implementations made of them.

A tensor is drawn by a generator seeded with its key, so a case stores shapes and results but no weights.
"""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Shape = tuple[int, ...]
FOLDER = Path(__file__).parent / "golden"


def fill(key: str, shape: Shape) -> torch.Tensor:
    """Return the tensor that stands under `key`: float32, or int64 zeros for a batch counter."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    draw = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * draw.standard_normal(shape)
    elif len(shape) == 1:
        values = draw.uniform(0.5, 1.0, shape)
    else:
        values = 0.8 * draw.standard_normal(shape) / np.sqrt(int(np.prod(shape[1:])))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def image(shape: Shape) -> torch.Tensor:
    """Return the float32 input of `shape`, also used as the weights of the training loss: standard normal."""
    draw = np.random.default_rng(zlib.crc32(repr(tuple(shape)).encode()))
    return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))


@dataclass(frozen=True)
class GoldenCase:
    """One upstream network.

    Attributes:
        name: of its files.
        family: format of its keys.
        input_shape: of the evaluation input; training takes two images of this size.
        shapes: of its state_dict, under the upstream's names.
        facts: everything else that is recorded of the network.
        results: what the upstream's implementation gave in float64.
    """

    name: str
    family: str
    input_shape: Shape
    shapes: dict[str, Shape]
    facts: dict[str, Any]
    results: dict[str, np.ndarray]

    def state(self) -> dict[str, torch.Tensor]:
        return {key: fill(key, shape) for key, shape in self.shapes.items()}

    @property
    def expected_outputs(self) -> list[torch.Tensor]:
        count = sum(name.startswith("eval_") for name in self.results)
        return [torch.from_numpy(self.results[f"eval_{i}"]).double() for i in range(count)]

    def expected(self, keys: str, values: str) -> dict[str, float]:
        """Return one kind of training figure by key, such as ``("grad_keys", "grad_norm")``."""
        pairs = zip(self.results[keys].tolist(), self.results[values].tolist(), strict=True)
        return {str(key): float(value) for key, value in pairs}


def case_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@functools.cache
def load_case(name: str) -> GoldenCase:
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    shapes = {key: tuple(shape) for key, shape in facts.pop("keys").items()}
    with np.load(FOLDER / f"{name}.npz") as stored:
        results = {key: stored[key] for key in stored.files}
    return GoldenCase(name, facts.pop("family"), tuple(facts.pop("input")), shapes, facts, results)
