"""The loop in two processes, as ``torchrun`` starts them: the run of one process with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_task import recipe
from run_made import made_task
from run_states import numbers_of_log, state_of

from hrnet_fast.trainer import read_log, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def in_two_processes(out: Path, options: list[dict[str, Any]]) -> list[list[str]]:
    """Run one after the other in the same processes. Return what each printed: exit codes or errors."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    program, ports = Path(__file__).with_name("run_made.py"), [{"MASTER_PORT": str(free_port())} for _ in options]
    given = json.dumps([{"environment": port, **one} for port, one in zip(ports, options, strict=True)])
    started = [
        subprocess.Popen(
            [sys.executable, program, out, given],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    return [out.splitlines() for out, _ in printed]


def assert_close(a: Any, b: Any, place: str = "") -> None:
    """Equal up to the rounding of float64."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=lambda text: f"{place}: {text}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_close(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), place
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{place}/{k}")
    else:
        assert a == (pytest.approx(b, rel=1e-9) if isinstance(a, float) else b), place


OPTIONS: dict[str, Any] = {
    "task": {"dtype": "float64", "network": "hrnet", "val": True, "pictures": {"count": 20, "noise": 0.1}},
    "recipe": {
        "batch_size": 8, "accumulate": 2, "sync_bn": True, "ema": 0.9, "clip_norm": 0.5, "epochs": 2,
        "optimizer": {"kind": "adamw"}
    },
    "train": {"log_every": 2},
}  # fmt: skip


def test_two_processes_train_as_one_would(tmp_path: Path) -> None:
    """With statistics over both. They stop behind a signal to one of them, resume, and end when one cannot read."""
    one, two, failed = tmp_path / "one", tmp_path / "two", tmp_path / "failed"
    failing = {"task": {"pictures": {"failing": [5]}}, "recipe": {"batch_size": 2}, "train": {"save_iterations": 1}}
    resuming = {**OPTIONS, "train": {**OPTIONS["train"], "resume": True}}
    own = {"task": {"val": True, "pictures": {"count": 8, "noise": 0.0}}, "recipe": {"ema": 0.9, "epochs": 1}}
    own["out"] = str(tmp_path / "own")
    said = in_two_processes(two, [{**OPTIONS, "die": [15, 4]}, resuming, {**failing, "out": str(failed)}, own])
    assert [[line.split()[0] for line in lines[:2]] for lines in said] == [["143", "0"]] * 2
    data, other = sorted(lines[2] for lines in said)
    assert data.startswith("DatasetError: sample 5 (picture_5.png) cannot be read")
    assert other.startswith("TrainingError: Another process")
    assert state_of(failed)["iteration"] < 6
    # Without sync_bn each process has statistics of its own, and all evaluate with those that the files hold.
    figures = [json.loads(lines[3].partition(" ")[2]) for lines in said]
    assert figures[0].keys() == {"raw", "ema"}
    assert figures[0] == figures[1]

    train(made_task(OPTIONS), recipe(**OPTIONS["recipe"]), one, **OPTIONS["train"])
    assert [r["iteration"] for r in read_log(two / "log.jsonl") if r["kind"] == "start"] == [0, 4]
    assert_close(numbers_of_log(two), numbers_of_log(one))
    mine, theirs = state_of(two), state_of(one)
    for part in ("model", "ema", "optimizer"):
        assert_close(mine[part], theirs[part], part)
    assert len(mine["processes"]) == 2
