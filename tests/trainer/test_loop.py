"""The loop in one process: its numbers, its choices, what it keeps and what it refuses."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_task import At, Batch, MadeTask, Pictures, Sample, recipe
from PIL import Image
from run_states import differences, state_of
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.datasets import AnnotatedImages
from hrnet_fast.errors import DatasetError, MissingPackageError
from hrnet_fast.evaluation.result import EvaluationResult
from hrnet_fast.implementations import select_implementation
from hrnet_fast.trainer import Callback, TensorBoard, read_log, train
from hrnet_fast.trainer.sampler import TrainingOrder
from hrnet_fast.trainer.step_choices import choose


class Plain(MadeTask):
    """Without dropout and normalisation, whose numbers depend on the micro-batch; in float64, without noise."""

    def __init__(self, loss: Any = None, **pictures: Any) -> None:
        super().__init__(Pictures(dtype=torch.float64, noise=0.0, **pictures))
        self.loss = loss

    def make_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Tanh(), nn.Conv2d(4, 1, 1)).double()

    def make_loss(self) -> Any:
        return self.loss or super().make_loss()


def weights_of(folder: Path, name: str = "final.pth") -> dict[str, Tensor]:
    return torch.load(folder / name)  # type: ignore[no-any-return]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_log(folder / "log.jsonl") if r["kind"] == kind]


def test_the_numbers_are_those_of_a_loop_written_out(tmp_path: Path) -> None:
    """Order, rates, clipping, the average of weights, accumulation: four micro-batches as one batch."""
    task, decay = Plain(), 0.75
    options: dict[str, Any] = {"ema": decay, "clip_norm": 0.05, "optimizer": {"momentum": 0.5, "nesterov": True}}
    options |= {"schedule": {"kind": "poly", "warmup_iterations": 3}}
    train(task, recipe(**options), tmp_path / "one", log_every=1)
    train(task, recipe(**options, accumulate=4), tmp_path / "four", log_every=1)

    torch.manual_seed(0)
    model = task.make_model()
    average = copy.deepcopy(model).state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5, nesterov=True)
    losses, rates = [], []
    for iteration, keys in enumerate(TrainingOrder(12, recipe().loop).micro_batches(0)):
        images = torch.stack([task.train[key.sample].image for key in keys])  # type: ignore[union-attr]
        _, targets = task.inputs(Batch(images, (), (), ()), torch.Generator())
        rates.append(0.05 * (1 - iteration / 9) ** 0.9 * (min(1, 0.001 + 0.999 * iteration / 3)))
        optimizer.param_groups[0]["lr"] = rates[-1]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(images), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        losses.append(loss.item())
        for name, value in model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value if iteration else value.clone()
    for name, tolerance in (("one", 1e-14), ("four", 1e-12)):
        folder = tmp_path / name
        assert [r["lr"] for r in records(folder, "step")] == pytest.approx(rates, rel=1e-12)
        assert [r["loss"] for r in records(folder, "step")] == pytest.approx(losses, rel=tolerance)
        assert records(folder, "epoch")[0]["loss"] == pytest.approx(sum(losses[:3]) / 3)
        for file, expected in (("final.pth", model.state_dict()), ("final_ema.pth", average)):
            torch.testing.assert_close(weights_of(folder, file), dict(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_and_the_scaler(dtype: str, tmp_path: Path) -> None:
    made = recipe(dtype=dtype, accumulate=2, clip_norm=10.0)
    train(MadeTask(), made, tmp_path / "a", callbacks=[At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    scaler = state_of(tmp_path / "a")["scaler"]
    assert scaler is None if dtype == "bfloat16" else scaler["_growth_tracker"] == 4
    train(MadeTask(), made, tmp_path / "a", resume=True)
    train(MadeTask(), made, tmp_path / "b")
    assert differences(state_of(tmp_path / "a"), state_of(tmp_path / "b")) == []
    plain = tmp_path / "plain"
    train(MadeTask(), recipe(), plain)
    losses = [records(folder, "epoch")[-1]["loss"] for folder in (tmp_path / "a", plain)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_a_network_is_accelerated_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = train(MadeTask(network="hrnet"), recipe(), tmp_path / "auto")
    start = records(tmp_path / "auto", "start")[0]["choices"]
    fused = select_implementation("bn_act", "auto", torch.empty(0))
    assert start["accelerate"]["chosen"] is (fused != "reference")
    assert fused in start["accelerate"]["reason"] or fused == "reference"
    if start["accelerate"]["chosen"]:
        assert "7 of 7 blocks take the fused path" in start["accelerate"]["report"]
    assert start["graph"] == {"chosen": False, "reason": "the device is cpu"}
    assert start["channels_last"]["chosen"] is True
    train(MadeTask(network="hrnet"), recipe(accelerate="off", channels_last=False), tmp_path / "off")
    monkeypatch.setenv("HRNET_FAST_IMPL", "reference")
    choices = choose(recipe().loop, MadeTask(network="hrnet").make_model(), torch.device("cpu"), 1)
    assert (choices.accelerate, choices.reasons["accelerate"]) == (False, "HRNET_FAST_IMPL=reference")
    off = records(tmp_path / "off", "start")[0]["choices"]
    assert off["accelerate"] == off["channels_last"] == {"chosen": False, "reason": "the recipe says so"}
    losses = [records(tmp_path / name, "epoch")[-1]["loss"] for name in ("auto", "off")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert outcome.finished


@pytest.mark.parametrize(("family", "first"), [("mmpose", "backbone.conv1.weight"), (None, "conv1.weight")])
def test_the_best_weights_have_the_names_of_their_code_base(family: str | None, first: str, tmp_path: Path) -> None:
    task = MadeTask(Pictures(2), Pictures(2), network="whole", family=family)
    outcome = train(task, recipe(epochs=1, batch_size=2, ema=0.5), tmp_path)
    for name, kind in (("best.pth", "raw"), ("best_ema.pth", "ema")):
        assert first in weights_of(tmp_path, name)
        network = hf.load_checkpoint(tmp_path / name)
        assert network.family == (family or "pose")
        with torch.no_grad():
            found = task.evaluate(network, torch.device("cpu")).figures["score"]
        assert found == pytest.approx(outcome.best[kind], rel=1e-4)


def test_the_best_figure_is_kept(tmp_path: Path) -> None:
    task = MadeTask(val=Pictures(2), figures=[0.5, float("nan"), 0.7], higher_is_better=False)
    outcome = train(task, recipe(), tmp_path / "low")
    assert (outcome.best, outcome.best_epoch) == ({"raw": 0.5}, {"raw": 1})
    assert records(tmp_path / "low", "evaluation")[1]["figures"] == {"score": None}
    outcome = train(MadeTask(val=Pictures(2), figures=[0.5, 0.9, 0.7]), recipe(), tmp_path / "high")
    assert (outcome.best, outcome.best_epoch) == ({"raw": 0.9}, {"raw": 2})
    assert outcome.evaluations["raw"].figures == {"score": 0.7}
    environment = json.loads((tmp_path / "high" / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    ("options", "processes", "graph", "why"),
    [
        ({}, 1, True, "a CUDA device"),
        ({}, 2, False, "there are 2 processes"),
        ({"graph": "on"}, 2, True, "the recipe says so"),
        ({"deterministic": True}, 1, False, "deterministic"),
    ],
)
def test_steps_are_captured_on_cuda_devices(options: dict[str, Any], processes: int, graph: bool, why: str) -> None:
    made = recipe(**options, accelerate="off", dtype="bfloat16").loop
    choices = choose(made, nn.Sequential(), torch.device("cuda"), processes)
    assert (choices.graph, choices.channels_last) == (graph, True)
    assert why in choices.reasons["graph"]
    assert not choose(recipe(accelerate="off").loop, nn.Sequential(), torch.device("cuda"), 1).channels_last


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"accelerate": "on"}, "accelerate='on': Sequential has no module of an HRNet"),
        ({"graph": "on"}, "graph='on': the device is cpu"),
        ({"batch_size": 16, "keep_last_batch": False}, "12 training samples are less than one batch"),
    ],
)
def test_what_cannot_be_had_is_refused_before_there_is_a_folder(
    options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(hf.ConfigError, match=named):
        train(MadeTask(), recipe(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Files(AnnotatedImages[Sample]):
    """Twelve pictures in files."""

    dtype = torch.float32

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        for k in range(12):
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / f"{k}.png")

    def __len__(self) -> int:
        return 12

    def read(self, index: int) -> Sample:
        path = str(self.folder / f"{index}.png")
        return Sample(index, self._pixels(path).permute(2, 0, 1) / 255, path)


def test_a_run_with_a_cache_of_pictures_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = MadeTask(Files(tmp_path))  # type: ignore[arg-type]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train(task, recipe(), tmp_path / "off")
    cached = recipe().override("data.cache=1 MiB")
    train(task, cached, tmp_path / "on", callbacks=[At(5, lambda: signal.raise_signal(signal.SIGTERM))])
    assert train(task, cached.override("data.cache=20 MiB"), tmp_path / "on", resume=True).finished
    assert differences(state_of(tmp_path / "off")["model"], state_of(tmp_path / "on")["model"]) == []
    assert [note["text"] for note in records(tmp_path / "on", "note")] == [
        "data.cache keeps 12 decoded pictures and masks in 0.00 GiB"
    ]
    assert task.train.cache is None
    assert not list(tmp_path.glob("hrnet_fast_pictures*"))
    with pytest.raises(hf.ConfigError, match=r"data\.cache: Pictures reads its pictures itself"):
        train(MadeTask(), cached, tmp_path / "made")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_names_its_files(accumulate: int, tmp_path: Path) -> None:
    made = recipe(accumulate=accumulate)
    batches = TrainingOrder(12, recipe().loop).micro_batches(0)
    keys = list(batches)[1]
    files = [f"picture_{key.sample}.png" for key in keys]
    task = MadeTask(Pictures(nan=[keys[2].sample]))
    with pytest.raises(hf.TrainingError) as caught:
        train(task, made, tmp_path, save_iterations=1)
    assert "nan at iteration 2 (epoch 1)" in str(caught.value)
    assert ", ".join(files) in str(caught.value)
    state = state_of(tmp_path)
    assert state["iteration"] == 1
    assert all(torch.isfinite(v).all() for v in state["model"].values())
    stop = records(tmp_path, "stop")
    assert [(one["update"], one["files"]) for one in stop] == [(2, files)]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The loss is 1, its gradient NaN."""
    task = Plain(lambda outputs, targets: 1 + (outputs * 0).square().mean().sqrt())
    with pytest.raises(hf.TrainingError, match=r"not finite at iteration 1, while all losses are: 0\.weight"):
        train(task, recipe(), tmp_path, save_iterations=1)
    assert state_of(tmp_path)["iteration"] == 0


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.processes])])
@pytest.mark.parametrize(
    ("error", "named"),
    [
        (DatasetError, r"^picture_5\.png: is broken$"),
        (OSError, r"^sample 5 \(picture_5\.png\) cannot be read: OSError: no such pixels$"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named(
    error: type[Exception], named: str, workers: int, tmp_path: Path
) -> None:
    task = MadeTask(Pictures(failing={5: error}))
    with pytest.raises(DatasetError, match=named) as caught:
        train(task, recipe(workers=workers), tmp_path, save_iterations=1)
    if error is OSError:
        assert "Traceback" in str(caught.value.__cause__)
    batches = list(TrainingOrder(12, recipe().loop).micro_batches(0))
    reached = next(k for k, keys in enumerate(batches) if any(key.sample == 5 for key in keys))
    assert state_of(tmp_path)["iteration"] in (reached, reached - 1)
    assert records(tmp_path, "stop")[0]["reason"].startswith("DatasetError: ")
    assert train(MadeTask(), recipe(), tmp_path, resume=True).finished  # the picture was repaired


@pytest.mark.slow
@pytest.mark.processes
def test_a_worker_that_dies_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(hf.TrainingError, match=r"DataLoader worker .* it was killed"):
        train(MadeTask(Pictures(dead=[5])), recipe(workers=1), tmp_path)
    assert state_of(tmp_path)["iteration"] == 0
    assert train(MadeTask(), recipe(), tmp_path, resume=True).finished


def test_samples_that_make_no_batch_are_named(tmp_path: Path) -> None:
    def collate(samples: Any) -> Any:
        raise RuntimeError("sizes differ")

    with pytest.raises(DatasetError, match=r"no batch: RuntimeError: sizes differ \(files: picture_\d+\.png, "):
        train(MadeTask(collate=collate), recipe(), tmp_path)


def test_broken_samples_are_counted_and_others_stand_in(tmp_path: Path) -> None:
    sizes = []

    class Sizes(MadeTask):
        def inputs(self, batch: Batch, generator: torch.Generator) -> Any:
            sizes.append(len(batch))
            return super().inputs(batch, generator)

    outcome = train(Sizes(Pictures(broken=(3, 4))), recipe(), tmp_path)
    assert (outcome.skipped, {*sizes}) == (2, {4})
    assert [one["skipped"] for one in records(tmp_path, "epoch")] == [2, 2, 2]
    assert sorted(records(tmp_path, "end")[0]["skipped"])[0] == ["picture_3.png", "", "picture_3.png is broken"]
    with pytest.raises(DatasetError, match="20 samples in a row are broken; the first: picture_"):
        train(MadeTask(Pictures(40, broken=range(40))), recipe(), tmp_path / "all")


def test_a_request_ends_an_evaluation(tmp_path: Path) -> None:
    class Stopping(Callback):
        def evaluation(self, done: int, total: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    class Twice(MadeTask):
        def evaluate(self, network: Any, device: Any, *, progress: Any = None) -> EvaluationResult:
            progress(1, 2)
            return super().evaluate(network, device, progress=progress)

    task = Twice(val=Pictures(2))
    outcome = train(task, recipe(), tmp_path, callbacks=[Stopping()])
    assert (outcome.stopped_by, outcome.iterations, task.evaluations) == ("SIGTERM", 3, 0)
    assert train(task, recipe(), tmp_path, resume=True).finished
    assert [r["epoch"] for r in records(tmp_path, "evaluation")] == [1, 2, 3]


def test_evaluations_come_when_they_are_due(tmp_path: Path) -> None:
    train(MadeTask(val=Pictures(2)), recipe(epochs=5, evaluate_every=2), tmp_path)
    assert [r["epoch"] for r in records(tmp_path, "evaluation")] == [2, 4, 5]
    with pytest.raises(hf.ConfigError, match=r"best='AP' is no figure of this evaluation: score"):
        train(MadeTask(val=Pictures(2), best="AP"), recipe(), tmp_path / "other")


def test_flags_and_random_states_of_the_process_stay(tmp_path: Path) -> None:
    state, flags = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    seen = []
    task = MadeTask()
    train(
        task, recipe(deterministic=True), tmp_path / "a",
        callbacks=[At(1, lambda: seen.append(torch.is_deterministic_algorithms_warn_only_enabled()))],
    )  # fmt: skip
    assert seen == [False]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() is flags
    torch.rand(5)
    train(task, recipe(deterministic=True), tmp_path / "b")
    assert differences(state_of(tmp_path / "a"), state_of(tmp_path / "b")) == []
    train(task, recipe(seed=1), tmp_path / "c")
    assert differences(state_of(tmp_path / "a"), state_of(tmp_path / "c"))


def test_tensorboard_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        TensorBoard(tmp_path)
    written: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            written.append(folder)

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((tag, step))

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    train(MadeTask(val=Pictures(2)), recipe(epochs=1), tmp_path / "run", callbacks=[TensorBoard(tmp_path)])
    steps = [(name, 3) for name in ("loss", "lr", "images_per_second", "wait_share")]
    assert written == [str(tmp_path), *steps, ("raw/score", 1), "closed"]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(hf.ConfigError, match="accepted is a Recipe"):
        train(MadeTask(), {}, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(hf.InputError, match="Callback objects"):
        train(MadeTask(), recipe(), tmp_path, callbacks=[print])  # type: ignore[list-item]
    with pytest.raises(hf.InputError, match="device 'warp' cannot be used"):
        train(MadeTask(), recipe(), tmp_path, device="warp")
    (tmp_path / "file").touch()
    with pytest.raises(hf.InputError, match="file/run cannot be made"):
        train(MadeTask(), recipe(), tmp_path / "file" / "run")
    with pytest.raises(hf.InputError, match="absent: cannot be read"):
        read_log(tmp_path / "absent")
    (tmp_path / "file").write_text("{}\nno\n")
    with pytest.raises(hf.InputError, match="line 2: is no JSON object"):
        read_log(tmp_path / "file")
