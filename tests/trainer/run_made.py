"""A program that trains the made task in a folder: ``run_made.py OUT OPTIONS``, where options are JSON.

Options: ``task`` and ``recipe`` (fields), ``train`` (arguments), ``die`` (``[signal, iteration]``: sent to the process
group behind that update), ``die_in_save`` (the number of the save in which the process kills itself).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from made_task import At, MadeTask, Pictures, recipe

from hrnet_fast import whole_files
from hrnet_fast.trainer import train


def die_in_save(number: int) -> None:
    """Kill this process when it is about to give its `number`-th ``last.pt`` its name."""
    replace, count = os.replace, [0]

    def killing(source: Any, target: Any) -> None:
        count[0] += str(target).endswith("last.pt")
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    whole_files.os.replace = killing  # type: ignore[attr-defined]


def made_task(options: dict[str, Any]) -> MadeTask:
    fields = dict(options.get("task", {}))
    dtype = getattr(torch, fields.pop("dtype", "float32"))
    pictures = fields.pop("pictures", {})
    val = Pictures(4, dtype=dtype) if fields.pop("val", False) else None
    return MadeTask(Pictures(dtype=dtype, **pictures), val, **fields)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[2])
    callbacks = []
    if "die" in given:
        number, iteration = given["die"]
        callbacks.append(At(iteration, lambda: os.killpg(os.getpgid(0), number)))
    if "die_in_save" in given:
        die_in_save(given["die_in_save"])
    outcome = train(
        made_task(given), recipe(**given.get("recipe", {})), sys.argv[1], callbacks=callbacks, **given.get("train", {})
    )
    sys.exit(outcome.exit_code)
