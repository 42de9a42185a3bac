"""Trainings from random weights on real pictures: each recipe with eager and with accelerated modules, by seeds.

Both trainings of a pair run at the same time, with one thread each, so that whatever else the machine does slows both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.reports.machine import ROOT, provenance, revision
from benchmarks.reports.trainings import EAGER, OURS, Learned, Training, read_trainings
from hrnet_fast.errors import HRNetFastError, InputError
from hrnet_fast.trainer.records import read_log
from hrnet_fast.whole_files import written_whole


def learn(
    data: Path, output: Path, recipes: Mapping[str, Learned], seeds: Sequence[int], settings: Iterable[str] = ()
) -> list[Training]:
    """Run what `output` lacks of recipes and seeds, write it after each pair, and return all of it.

    Raises:
        InputError: a recipe's folder is missing.
        HRNetFastError: a training ended with an error, which is in the message.
    """
    for recipe, learned in recipes.items():
        if not (data / learned.folder).is_dir():
            raise InputError(f"{data / learned.folder}: no such folder, and {recipe} reads it.")
    done = read_trainings(output) if output.exists() else []
    known = {(t.recipe, t.seed) for t in done}
    for seed in seeds:
        for recipe, learned in recipes.items():
            if (recipe, seed) not in known:
                done += _pair(recipe, learned, seed, data, tuple(settings))
                _write(done, output)
    return done


def _pair(recipe: str, learned: Learned, seed: int, data: Path, settings: tuple[str, ...]) -> list[Training]:
    with tempfile.TemporaryDirectory() as folder:

        def run_of(modules: str) -> Path:
            return Path(folder, f"{recipe.rpartition('/')[2]}-{modules}-{seed}")

        started = {}
        for modules in (EAGER, OURS):
            chosen = (f"loop.seed={seed}", f"loop.accelerate={'off' if modules == EAGER else 'on'}")
            given = [f"--set={s}" for s in ("data.workers=0", *learned.settings, *settings, *chosen)]
            arguments = ["train", recipe, "--data", learned.folder, "--out", str(run_of(modules)), *given]
            started[modules] = arguments, _start(arguments, data, Path(folder, modules + ".txt"))
        ended = {modules: os.wait4(process.pid, 0) for modules, (_, process) in started.items()}
        made = []
        for modules, (arguments, _) in started.items():
            _, status, usage = ended[modules]
            if status:
                said = Path(folder, modules + ".txt").read_text().strip().splitlines()[-5:]
                raise HRNetFastError(f"{recipe}, seed {seed}, {modules}: the training failed: " + " ".join(said))
            records = read_log(run_of(modules) / "log.jsonl")
            command = " ".join(["OMP_NUM_THREADS=1 hrnet-fast", *arguments]).replace(folder, "runs")
            made.append(_training(recipe, seed, modules, command, usage.ru_utime + usage.ru_stime, records))
        return made


def _start(arguments: Sequence[str], data: Path, output: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "hrnet_fast.cli", *arguments]
    with output.open("wb") as file:
        return subprocess.Popen(command, cwd=data, env=settings, stdout=file, stderr=subprocess.STDOUT)


def _training(
    recipe: str, seed: int, modules: str, command: str, processor_seconds: float, records: Sequence[Mapping[str, Any]]
) -> Training:
    (start,) = (r for r in records if r["kind"] == "start")
    epochs = [r for r in records if r["kind"] == "epoch"]
    return Training(
        recipe,
        seed,
        modules,
        command,
        start["choices"]["accelerate"].get("report", ""),
        round(sum(r["seconds"] for r in epochs), 2),
        round(processor_seconds, 2),
        revision(),
        [r["loss"] for r in epochs],
        [{"epoch": r["epoch"], "figures": r["figures"]} for r in records if r["kind"] == "evaluation"],
    )


def _write(trainings: Sequence[Training], path: Path) -> None:
    content = {**provenance(torch.device("cpu")), "trainings": [asdict(t) for t in trainings]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
