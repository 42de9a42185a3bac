"""``RunFolder``: the files of one run, each written whole or not at all."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints import FAMILIES, convert_checkpoint, save_checkpoint
from hrnet_fast.detection import Detector
from hrnet_fast.errors import CheckpointError, ConfigError, HRNetFastError, InputError, shown
from hrnet_fast.models import HRNet
from hrnet_fast.recipes.recipe import Recipe
from hrnet_fast.trainer.records import read_log
from hrnet_fast.whole_files import remove_unfinished, written_whole

RECIPE, ENVIRONMENT, LOG, LAST = "recipe.yaml", "environment.json", "log.jsonl", "last.pt"
WEIGHTS = ("best.pth", "best_ema.pth", "final.pth", "final_ema.pth")
FORMAT = 1  # of last.pt
# Beginnings of the fields that a resumed run may have otherwise: they change no weight, a broken file's apart.
MAY_DIFFER = ("data.workers", "data.skip_broken", "data.cache", "evaluation.")


class RunFolder:
    """A folder with a run.

    Args:
        path: the folder; it is made where it does not exist.
        resume: whether a run in it goes on.

    Raises:
        InputError: there is a run and `resume` is False, or there is none and it is True, or `path` is no folder that
            can be made.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self.last, self.log = path / LAST, path / LOG
        present = [name for name in (RECIPE, LOG, LAST, *WEIGHTS) if (path / name).exists()]
        if present and not resume:
            raise InputError(
                f"train: {path} has a run already ({', '.join(present)}); resume it, or give another folder."
            )
        if resume and not present:
            raise InputError(f"train: {path} has no run to resume; start one without resume, or give its folder.")

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"train: the folder {self.path} cannot be made ({error.strerror}).") from error

    def describe(self, recipe: Recipe, environment: Mapping[str, Any]) -> None:
        """Write the recipe and the environment; remove what an ended process left of unfinished files.

        Raises:
            InputError: they cannot be written.
        """
        for name in (RECIPE, ENVIRONMENT, LAST, *WEIGHTS):
            remove_unfinished(self.path / name)
        texts = {RECIPE: recipe.to_yaml(), ENVIRONMENT: json.dumps(environment, indent=2) + "\n"}
        for name, text in texts.items():
            try:
                with written_whole(self.path / name) as unfinished:
                    unfinished.write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"train: {self.path / name} cannot be written ({error.strerror}).") from error

    def load(self) -> dict[str, Any] | None:
        """Return the content of ``last.pt`` with tensors on the CPU, or None where a run ended before its first one.

        Raises:
            CheckpointError: it cannot be read, or it is missing and the folder has weights or records of updates.
            InputError: it is missing, and the log cannot be read.
        """
        if not self.last.exists():
            done = [name for name in WEIGHTS if (self.path / name).exists()]
            if self.log.exists() and any(record.get("iteration") for record in read_log(self.log)):
                done.append(f"updates in {LOG}")
            if done:
                raise CheckpointError(
                    f"{self.last}: is missing, and the run in its folder has {', '.join(done)}; restore a copy of it, "
                    "or start a run in another folder."
                )
            return None
        try:
            state = torch.load(self.last, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.last}: cannot be read ({type(error).__name__}); restore a copy.") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{self.last}: is no state of a run that this version reads (format {FORMAT}).")
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write ``last.pt``.

        Raises:
            CheckpointError: it cannot be written; the one before stays.
        """
        try:
            with written_whole(self.last) as unfinished, unfinished.open("wb") as handle:
                torch.save({"format": FORMAT, **state}, handle)
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when the disk is full
            raise CheckpointError(
                f"{self.last}: cannot be written ({error}); the one before it, if any, is unchanged."
            ) from error

    def save_weights(self, name: str, network: Any, state: Mapping[str, Tensor]) -> None:
        """Write a state_dict under the names that the network's own code base has.

        Args:
            name: the file's.
            network: tells the code base: that of the checkpoint it began from, or the authors'.
            state: the network's, or an average's.

        Raises:
            CheckpointError: it cannot be written.
        """
        plain = {key: value.detach().cpu() for key, value in state.items()}
        settings = network.config if isinstance(network, Detector) else None
        save_checkpoint(upstream_names(network, plain), self.path / name, overwrite=True, detector=settings)


def upstream_names(network: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` under the names of the family that the network's weights came from, where that can hold it."""
    family = getattr(network, "family", None)
    if not isinstance(network, HRNet) or family not in FAMILIES:
        return state
    if network.config.head.kind not in FAMILIES[family].heads:
        return state
    try:
        return convert_checkpoint(state, to=family)
    except HRNetFastError:  # another head than its files can have: the authors' names
        return state


def check_same_run(path: Path, state: Mapping[str, Any], recipe: Recipe, samples: int) -> None:
    """Compare the run in a folder with the recipe and the number of samples that are to go on with it.

    Raises:
        ConfigError: fields of the recipe differ, other than `MAY_DIFFER`, or the number of samples does;
            the message names them.
    """
    then, now = dict(_fields(state["recipe"])), dict(_fields(recipe.to_dict()))
    names = [k for k in {**then, **now} if then.get(k) != now.get(k) and not k.startswith(MAY_DIFFER)]
    if names:
        told = "; ".join(f"{k} was {shown(then.get(k))}, is {shown(now.get(k))}" for k in names)
        raise ConfigError(
            f"train: the run in {path} has another recipe: {told}. Resume it with its own recipe, or start a run in "
            "another folder."
        )
    if state["samples"] != samples:
        raise ConfigError(
            f"train: the run in {path} has {state['samples']} training samples, the data here has {samples}; resume it "
            "with its own data."
        )


def measures_otherwise(then: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a recipe's figures cannot be compared with those of the run's recipe so far: its evaluation differs."""
    before, now = dict(then["evaluation"]), dict(recipe.to_dict()["evaluation"])
    return any(before.get(name) != now.get(name) for name in {*before, *now} - {"batch_size"})


def _fields(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found += _fields(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
