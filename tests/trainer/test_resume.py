"""A stopped, failed or killed run: what it leaves is whole, and resumed it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_task import At, MadeTask, Pictures, recipe
from run_states import assert_same_run, state_of
from simulated_time import simulate_time

import hrnet_fast as hf
from hrnet_fast.trainer import read_log, train
from hrnet_fast.trainer.records import RunLog

LOG: dict[str, Any] = {"log_every": 2}
OPTIONS: dict[str, Any] = {"ema": 0.9, "clip_norm": 1.0, "optimizer": {"kind": "adamw", "weight_decay": 0.1}}


def task(**fields: Any) -> MadeTask:
    """Dropout, noise at reading and on the device, an evaluation that draws; an epoch with a smaller last batch."""
    return MadeTask(Pictures(11), Pictures(4), augment=0.1, **fields)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(task(), recipe(**OPTIONS), folder, **LOG).finished
    return folder


@pytest.mark.parametrize(("when", "done"), [(4, 4), (6, 6), ("evaluation", 3)])
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    when: int | str, done: int, uninterrupted: Path, tmp_path: Path
) -> None:
    """In the middle of an epoch, at its end and between evaluations; with other workers behind that."""
    before = signal.getsignal(signal.SIGTERM)
    outcome = train(task(), recipe(**OPTIONS), tmp_path, callbacks=[At(when, terminate)], **LOG)
    assert (outcome.finished, outcome.iterations, outcome.stopped_by, outcome.exit_code) == (
        False,
        done,
        "SIGTERM",
        143,
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_log(tmp_path / "log.jsonl")[-1]["reason"] == "SIGTERM"
    torch.rand(7)  # the state of this process is not the run's
    outcome = train(task(), recipe(**OPTIONS, workers=2), tmp_path, resume=True, **LOG)
    assert (outcome.finished, outcome.exit_code) == (True, 0)
    assert_same_run(tmp_path, uninterrupted)
    assert [r["iteration"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "start"] == [0, done]
    again = train(task(), recipe(**OPTIONS), tmp_path, resume=True)
    assert again.finished
    assert again.best == outcome.best


def test_what_follows_the_last_checkpoint_is_computed_again(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a power failure: the log is longer than the checkpoint knows, and a file is unfinished."""

    def fail() -> None:
        raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        train(task(), recipe(**OPTIONS), tmp_path, callbacks=[At(8, fail)], save_iterations=5, **LOG)
    assert state_of(tmp_path)["iteration"] == 6  # behind the evaluation, as 5 was before
    (tmp_path / ".last.pt.abc").write_bytes(b"half")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "st')
    assert read_log(tmp_path / "log.jsonl")[-1]["reason"] == "RuntimeError: power failure"
    train(task(), recipe(**OPTIONS), tmp_path, resume=True, **LOG)
    assert_same_run(tmp_path, uninterrupted)
    assert not (tmp_path / ".last.pt.abc").exists()


def test_checkpoints_are_written_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = simulate_time(monkeypatch), []

    def step() -> None:
        saved.append(state_of(tmp_path)["iteration"])
        clock.sleep(40)

    callbacks = [At(k, step) for k in range(1, 9)]
    train(MadeTask(Pictures(32)), recipe(epochs=1), tmp_path, callbacks=callbacks, save_seconds=100)
    assert saved == [0, 0, 0, 3, 3, 3, 6, 6]


def test_a_failed_write_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def full(content: Any, handle: Any) -> None:
        if content["iteration"] == 6:
            handle.write(b"half of it")
            raise OSError(28, "No space left on device")
        save(content, handle)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(hf.CheckpointError, match=r"last\.pt: cannot be written .*No space"):
        train(MadeTask(), recipe(), tmp_path, save_iterations=3)
    assert state_of(tmp_path)["iteration"] == 3
    assert not list(tmp_path.glob(".last*"))


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
def test_only_a_second_interrupt_stops_at_once(again: signal.Signals, tmp_path: Path) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), again)

    def run() -> Any:
        return train(MadeTask(), recipe(), tmp_path, callbacks=[At(2, interrupt)], save_iterations=1)

    if again == signal.SIGTERM:
        assert run().exit_code == 130
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
        assert state_of(tmp_path)["iteration"] == 1
    assert train(MadeTask(), recipe(), tmp_path, resume=True).finished


def test_a_run_goes_on_with_fewer_processes(tmp_path: Path) -> None:
    train(task(), recipe(**OPTIONS), tmp_path, callbacks=[At(4, terminate)])
    state = state_of(tmp_path)
    torch.save({**state, "processes": state["processes"] * 2}, tmp_path / "last.pt")
    assert train(task(), recipe(**OPTIONS), tmp_path, resume=True).finished
    starts = [r["note"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "start"]
    assert starts[0] == ""
    assert starts[1].startswith("the run had 2 processes and goes on with 1: random numbers of the steps begin anew")


def test_a_folder_holds_one_run(uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(hf.InputError, match="has a run already"):
        train(task(), recipe(**OPTIONS), uninterrupted)
    with pytest.raises(hf.InputError, match="no run to resume"):
        train(task(), recipe(**OPTIONS), tmp_path, resume=True)
    other = recipe(**(OPTIONS | {"ema": 0.5, "optimizer": {"kind": "adamw", "lr": 0.2}}))
    with pytest.raises(hf.ConfigError) as caught:
        train(task(), other, uninterrupted, resume=True)
    for field in ("loop.ema was 0.9, is 0.5", "optimizer.lr was 0.05, is 0.2", "optimizer.weight_decay was 0.1"):
        assert field in str(caught.value)
    with pytest.raises(hf.ConfigError, match="11 training samples, the data here has 12"):
        train(MadeTask(), recipe(**OPTIONS), uninterrupted, resume=True)
    (tmp_path / "last.pt").write_bytes(b"PK")
    with pytest.raises(hf.CheckpointError, match="cannot be read"):
        train(task(), recipe(), tmp_path, resume=True)


@pytest.mark.parametrize("left", [("recipe.yaml", "log.jsonl"), ("best.pth",)])
def test_a_run_without_its_state_is_not_begun_anew(left: tuple[str, ...], uninterrupted: Path, tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).write_bytes((uninterrupted / name).read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(hf.InputError, match="has a run already"):
        train(task(), recipe(**OPTIONS), tmp_path)
    with pytest.raises(hf.CheckpointError, match=r"last\.pt: is missing, .* restore a copy"):
        train(task(), recipe(**OPTIONS), tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_ended_before_its_first_state_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "start", "iteration": 0}\n{"kind": "stop", "iteration": 0}\n')
    assert train(MadeTask(), recipe(epochs=1), tmp_path, resume=True).finished
    assert [r["resumed"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "start"] == [False]


def test_a_mistake_in_the_evaluation_is_mended_by_resuming(tmp_path: Path) -> None:
    """What was trained stays, and the best weights are those of the new figure."""
    made = {"figures": [0.9, 0.5, 0.4], "val": Pictures(2)}
    with pytest.raises(hf.ConfigError, match="best='AP' is no figure"):
        train(MadeTask(**made, best="AP"), recipe(evaluation={"best": "AP"}), tmp_path)
    mended = recipe(evaluation={"best": "score"}, skip_broken=True)
    outcome = train(MadeTask(**made), mended, tmp_path, callbacks=[At(6, terminate)], resume=True)
    assert (outcome.iterations, outcome.best) == (6, {"raw": 0.9})
    assert [r["iteration"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "start"] == [0, 3]
    outcome = train(MadeTask(**made), recipe(evaluation={"flip": True}), tmp_path, resume=True)
    assert (outcome.best, outcome.best_epoch) == ({"raw": 0.9}, {"raw": 2})
    outcome = train(MadeTask(**made), recipe(evaluation={"flip": True, "batch_size": 3}), tmp_path, resume=True)
    assert outcome.best == {"raw": 0.9}


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    program = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, log], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(hf.InputError, match="another process trains"):
        train(MadeTask(), recipe(), tmp_path, resume=True)
    holder.communicate(b"\n", timeout=60)
    RunLog(log, 0).close()


def started(out: Path, options: dict[str, Any]) -> tuple[int, str]:
    """Run the program in a group of its own. Its workers may outlive it for a moment, so its output is a file's."""
    errors = out.with_suffix(".errors")
    with errors.open("w") as file:
        ended = subprocess.run(
            [sys.executable, Path(__file__).with_name("run_made.py"), out, json.dumps(options)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=file, timeout=120, check=False, start_new_session=True,
        )  # fmt: skip
    return ended.returncode, errors.read_text()


CASES: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], int]]] = {
    "SIGTERM to the group": lambda options: (options | {"die": [signal.SIGTERM, 4]}, 143),
    "killed while saving": lambda options: (options | {"die_in_save": 3}, -signal.SIGKILL),
}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("case", CASES)
def test_an_ended_process_leaves_a_whole_checkpoint(case: str, uninterrupted: Path, tmp_path: Path) -> None:
    """With workers, which a signal to the whole group reaches too."""
    options, code = CASES[case](
        {
            "task": {"val": True, "augment": 0.1, "pictures": {"count": 11}},
            "recipe": {**OPTIONS, "workers": 1},
            "train": {**LOG, "save_iterations": 2},
        }
    )
    folder = tmp_path / "run"
    returned, errors = started(folder, options)
    assert returned == code, errors[-3000:]
    assert errors == "" or code < 0
    assert state_of(folder)["iteration"] == (4 if code > 0 else 2)
    train(task(), recipe(**OPTIONS), folder, resume=True, **LOG)
    assert_same_run(folder, uninterrupted)
