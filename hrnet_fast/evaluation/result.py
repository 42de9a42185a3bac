"""``EvaluationResult``: figures of a data set and of each of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SampleResult:
    """One sample.

    Attributes:
        path, row: of the sample.
        figure: its own error or share, or NaN where the metric has none for one sample.
        answer: what was predicted, as JSON: points and scores, or a class; empty for maps.
    """

    path: str
    row: str
    figure: float
    answer: Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one data set.

    Attributes:
        figures: by name, as the metric computes them.
        samples: of every sample, in the data set's order; only of this process's part with several.
        count: samples in all processes.
        skipped: broken samples that were left out.
    """

    figures: Mapping[str, float]
    samples: tuple[SampleResult, ...]
    count: int
    skipped: int = 0
