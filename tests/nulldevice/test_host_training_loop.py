"""The training loop on CUDA, its host side: captured and launched steps, waits and copies of a warm step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import device_counters
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parents[1] / "trainer"))
from made_task import At, MadeTask, Pictures, recipe

from hrnet_fast.trainer import Callback, read_log, step_runner, train
from hrnet_fast.trainer.processes import Processes
from hrnet_fast.trainer.step_runner import StepRunner

pytestmark = pytest.mark.nulldevice


class Counts(Callback):
    """What the device counts from update to update."""

    def __init__(self) -> None:
        self.updates: list[SimpleNamespace] = []
        self._before = device_counters.counters()

    def iteration(self, done: int, total: int) -> None:
        now = device_counters.counters()
        changes = {k: v - getattr(self._before, k) for k, v in vars(now).items()}
        self.updates.append(SimpleNamespace(**changes))
        self._before = device_counters.counters()


CASES: dict[str, dict[str, Any]] = {
    "captured": {"optimizer": {"kind": "adamw"}, "dtype": "bfloat16", "ema": 0.9},
    "captured, accumulated": {"optimizer": {"kind": "sgd"}, "dtype": "float16", "accumulate": 2, "clip_norm": 1.0},
    "launched": {"optimizer": {"kind": "adam"}, "graph": "off", "ema": 0.9},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_warm_step_does_not_wait(case: str, tmp_path: Path) -> None:
    """A loss for each micro-batch is all that comes to the host, and nothing waits for the device."""
    counts, options = Counts(), CASES[case]
    made = recipe(epochs=2, schedule={"kind": "constant", "warmup_iterations": 0}, workers=1, **options)
    task = MadeTask(Pictures(32), Pictures(2), augment=0.1, network="hrnet")
    outcome = train(task, made, tmp_path, device="cuda", callbacks=[counts], log_every=100, save_seconds=0)
    assert outcome.finished
    accumulate = options.get("accumulate", 1)
    for warm in (*counts.updates[4:7], *counts.updates[9:15]):
        assert (warm.synchronizations, warm.to_host, warm.errors) == (0, accumulate, 0)
        assert warm.graph_launches == (0 if case == "launched" else accumulate)
    choices = read_log(tmp_path / "log.jsonl")[0]["choices"]
    assert choices["graph"]["chosen"] is (case != "launched")
    assert choices["channels_last"]["chosen"] is (case != "launched")
    notes = [r["text"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "note"]
    assert len(notes) == (case != "launched")
    assert all(f"of {min(accumulate, 3)} captured graphs" in text for text in notes)
    assert torch.load(tmp_path / "last.pt", map_location="cpu", weights_only=True)["iteration"] == 16
    assert train(task, made, tmp_path, device="cuda", resume=True).finished


class WithoutReductions(DistributedDataParallel):
    """The wrapper for a group without other processes: buckets are left as they are."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, lambda _, bucket: self.finished(bucket.buffer()))

    def finished(self, value: torch.Tensor) -> Any:
        future = torch.futures.Future(devices=[value.device])  # type: ignore[var-annotated]
        future.set_result(value)
        return future


@pytest.mark.slow
@pytest.mark.nulldevice
@pytest.mark.parametrize("graph", ["auto", "on"])
def test_steps_of_several_processes(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are launched, and where the recipe asks for it captured behind the eager updates that PyTorch asks for."""
    monkeypatch.setenv("NULLDEVICE_ZERO_SCALARS", "0")  # the wrapper reads its buckets' sizes from the device
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=fake.FakeStore())
    monkeypatch.setattr(step_runner, "DistributedDataParallel", WithoutReductions)
    made = recipe(graph=graph, optimizer={"kind": "adamw"})
    runner = StepRunner(MadeTask(network="hrnet"), made, Processes(torch.device("cuda", 0), 2, 0))
    images, targets = (torch.zeros(2, *shape, device="cuda") for shape in ((3, 32, 32), (1, 8, 8)))
    for _ in range(14):
        runner.run(images, targets, 0)
    choice = runner.explain()["graph"]
    if graph == "auto":
        reason = "there are 2 processes; loop.graph='on' captures with several too"
        assert choice == {"chosen": False, "reason": reason}
        assert runner.graphed is None
    else:
        assert choice == {"chosen": True, "reason": "the recipe says so"}
        report = runner.graphed.explain()
        assert (report.eager, report.captures, report.replays) == (11, 1, 3)


def test_a_run_goes_on_on_another_device(tmp_path: Path) -> None:
    """What belongs to the device in the optimizer's state is not taken over."""
    made = recipe(optimizer={"kind": "adamw"}, schedule={"kind": "constant", "warmup_iterations": 0})
    stop = At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    outcome = train(MadeTask(), made, tmp_path, device="cuda", callbacks=[stop])
    assert (outcome.iterations, outcome.exit_code) == (4, 143)
    assert train(MadeTask(), made, tmp_path, device="cpu", resume=True).finished
