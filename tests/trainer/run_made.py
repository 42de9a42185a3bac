"""A program that trains the made task in a folder: ``run_made.py OUT OPTIONS``, where options are JSON.

A list of options is run one after the other, with a line of output for each: the exit code or the error.

Options: ``out`` (another folder), ``environment`` (variables), ``task`` and ``recipe`` (fields), ``train`` (arguments),
``die`` (``[signal, iteration]``: sent to the process group behind that update), ``die_in_save`` (the number of the save
in which the process kills itself).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

if __name__ == "__main__":
    import measured_process

    measured_process.start()

import torch  # noqa: E402
from made_task import At, MadeTask, Pictures, recipe  # noqa: E402

from hrnet_fast import whole_files  # noqa: E402
from hrnet_fast.errors import HRNetFastError  # noqa: E402
from hrnet_fast.trainer import train  # noqa: E402


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
    pictures = dict(fields.pop("pictures", {}))
    pictures["failing"] = dict.fromkeys(pictures.get("failing", ()), OSError)
    val = Pictures(4, dtype=dtype, noise=pictures.get("noise", 0.1)) if fields.pop("val", False) else None
    return MadeTask(Pictures(dtype=dtype, **pictures), val, **fields)


def run(out: str, options: dict[str, Any]) -> int:
    """Train once, print the exit code and this process's own figures, and return the exit code."""
    os.environ |= options.get("environment", {})
    callbacks = []
    if "die" in options:
        number, iteration = options["die"]
        callbacks.append(At(iteration, lambda: os.killpg(os.getpgid(0), number)))
    if "die_in_save" in options:
        die_in_save(options["die_in_save"])
    made = recipe(**options.get("recipe", {}))
    outcome = train(made_task(options), made, out, callbacks=callbacks, **options.get("train", {}))
    figures = {weights: dict(result.figures) for weights, result in outcome.evaluations.items()}
    print(outcome.exit_code, json.dumps(figures))
    return outcome.exit_code


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[2])
    if isinstance(given, dict):
        sys.exit(run(sys.argv[1], given))
    for one in given:
        try:
            run(one.pop("out", sys.argv[1]), one)
        except HRNetFastError as error:
            print(f"{type(error).__name__}: {error}")
