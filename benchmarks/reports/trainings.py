"""Results of trainings on real pictures: what is trained, and what each run gave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hrnet_fast.errors import InputError

EAGER, OURS = "eager", "accelerated"


@dataclass(frozen=True)
class Learned:
    """One recipe's place in the results.

    Attributes:
        folder: its data's, in the folder of all data.
        figure: the one that the page compares.
        data: what it trains on, for the page.
        settings: of the recipe, beside seed and modules.
        also: further figures of the page.
    """

    folder: str
    figure: str
    data: str
    settings: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


RECIPES = {
    "small/mouse": Learned(
        "mouse",
        "pck@0.05",
        "60 frames of one animal, 17 keypoints, labelled by people; 12 other frames are evaluated (rmse in pixels)",
        ("loop.evaluate_every=5",),
        ("rmse",),
    ),
    "small/camvid": Learned(
        "camvid", "miou", "72 street scenes, 11 classes; 30 others are evaluated", ("loop.evaluate_every=5",)
    ),
    "small/faces": Learned(
        "faces",
        "nme",
        "240 faces, 68 points, labelled by a machine; 96 others are evaluated",
        ("loop.evaluate_every=5",),
    ),
    "small/cells": Learned(
        "cells", "top1", "623 blood cells of 103 pictures, 3 kinds; 501 cells of 87 other pictures are evaluated"
    ),
    "small/bccd": Learned("bccd", "AP", "103 pictures of blood cells, boxes of 3 kinds; 87 others are evaluated"),
    "small/bccd_fcos": Learned("bccd", "AP", "the same pictures and boxes"),
}


@dataclass(frozen=True)
class Training:
    """What one run gave.

    Attributes:
        recipe, seed, modules: which run; modules are `EAGER` or `OURS`.
        command: that repeats it, from the folder of all data.
        report: how many blocks took the fused path; empty without.
        seconds: of all epochs, without evaluation.
        processor_seconds: of the whole process.
        revision: of the repository.
        losses: mean of each epoch.
        evaluations: epoch and figures of each.
    """

    recipe: str
    seed: int
    modules: str
    command: str
    report: str
    seconds: float
    processor_seconds: float
    revision: str
    losses: list[float]
    evaluations: list[dict[str, Any]]

    def last(self, figure: str) -> float:
        return float(self.evaluations[-1]["figures"][figure])


def read_trainings(path: Path) -> list[Training]:
    """Read a file that :func:`learn` wrote.

    Raises:
        InputError: it is none.
    """
    try:
        return [Training(**made) for made in json.loads(path.read_text())["trainings"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no results of trainings ({error}).") from error
