"""The training benchmark: contenders on a tiny network, their memory, crossing points, and the picture of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from made_runs import measured, missing, run_of
from PIL import Image
from torch import nn

from benchmarks.bench_training import network
from benchmarks.reports.crossings import crossing_table, speeds, where_faster
from benchmarks.reports.page import render_page
from benchmarks.reports.readme_pictures import draw_pictures
from benchmarks.reports.records import Record
from benchmarks.reports.report import write_report
from benchmarks.trainers import TRAINERS, Step, Trainer, step_memory
from hrnet_fast.measure import relative_error, saved_bytes

EAGER, SMALLEST, LARGEST = "eager channels-last", 1, 8
HERE = [name for name, trainer in TRAINERS.items() if trainer.unavailable("cpu", asked=False) is None]


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return network(4)


def step_of(name: str, model: nn.Module, dtype: torch.dtype = torch.float32) -> Step:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Step(TRAINERS[name], copy.deepcopy(model), x, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_step_is_eagers_and_repeats(name: str, tiny: nn.Module) -> None:
    step, expected = step_of(name, tiny), step_of(EAGER, tiny)()
    assert relative_error(step(), expected) < 1e-5
    assert torch.equal(step()[0], step()[0])
    assert all(p.grad is None for p in step.parameters)


@pytest.mark.slow
def test_memory_is_what_the_allocator_holds(tiny: nn.Module) -> None:
    """Selective checkpointing saves what autograd's hooks do not see: convolutions' results, half of eager's maps."""
    found = {}
    for name in HERE:
        step = step_of(name, tiny)
        step()
        found[name] = step_memory(step)
        assert found[name].peak > found[name].kept > 0
    step = step_of(EAGER, tiny)
    kept = saved_bytes(lambda: step.forward()[0], step.parameters)
    assert found[EAGER].kept == pytest.approx(kept, rel=0.05)
    assert found["hrnet_fast memory=fast"].kept == pytest.approx(kept, rel=0.1)
    inside = {name: memory.kept / found[EAGER].kept for name, memory in found.items()}
    assert inside["hrnet_fast memory=min"] < inside["checkpoint"] < inside["checkpoint selective"] < 0.8
    assert inside["checkpoint"] < inside["hrnet_fast memory=lean"] < 0.8


def test_a_measured_step_leaves_no_memory(tiny: nn.Module) -> None:
    step = step_of(EAGER, tiny, torch.bfloat16)
    assert step_memory(step) == step_memory(step)


def test_what_compiles_runs_on_request() -> None:
    slow = Trainer(lambda model: model, slow=True)
    assert "--compile" in (slow.unavailable("cpu", asked=False) or "")
    assert slow.unavailable("cpu", asked=True) is None
    assert Trainer(lambda model: model, cuda_only=True).unavailable("cpu", asked=True) == "not on cpu"
    assert HERE[0] == EAGER
    assert not any(name.startswith("compile") for name in HERE)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ((1.1, 1.2, 1.3, 1.4), "all measured"),
        ((0.8, 0.9, 1.0, 0.9), "none measured"),
        ((0.5, 2.0, 2.0, 2.0), "from 1.26"),
        ((0.5, 1.0, 2.0, 2.0), "from 2.00"),
        ((2.0, 2.0, 2.0, 0.5), "up to 6.35"),
        ((2.0, 0.5, 0.5, 2.0), "up to 1.59, from 5.04"),
        ((0.5, 2.0, 2.0, 0.5), "1.26 to 6.35"),
        ((2.0, 0.5, 2.0, 0.5), "up to 1.59, 2.52 to 6.35"),
    ],
)
def test_crossing_points(ratios: tuple[float, ...], words: str) -> None:
    assert where_faster(list(zip((1.0, 2.0, 4.0, 8.0), ratios, strict=True))) == words


def training_records(dtype: str = "float32") -> list[Record]:
    """Steps whose cost per image falls from 1.5 to 0.75 of eager's; contiguous eager is faster at batch 8."""
    records = []
    for batch in (1, 2, 4, 8):
        given = {
            "suite": "scaling training batch",
            "case": f"HRNetV1-W32 256x192 batch {batch}",
            "dtype": dtype,
            "params": {"model": "hrnetv1_w32_pose", "batch": batch},
        }
        times = {EAGER: 0.3, "eager contiguous": 0.15 if batch == 8 else 0.4, "checkpoint": 0.5}
        times["hrnet_fast memory=fast"] = {1: 0.45, 2: 0.3, 4: 0.2, 8: 0.2}[batch]
        for name, seconds in times.items():
            records.append(measured(name, seconds * batch, quantity="training step", **given))
            records.append(measured(name, 2.0**27 * batch, quantity="kept for backward", unit="byte", **given))
        records.append(missing("compile", "unavailable", "on request", quantity="training step", **given))
    return records


def test_speeds_are_over_the_faster_layout() -> None:
    records = [*training_records(), measured("hrnet_fast", 1.0, quantity="training step")]
    found = speeds("scaling training batch", records)
    assert list(found) == [("float32", "checkpoint"), ("float32", "hrnet_fast memory=fast")]
    points = found["float32", "hrnet_fast memory=fast"]
    assert [x for x, _ in points] == [1, 2, 4, 8]
    assert [y for _, y in points] == pytest.approx([2 / 3, 1.0, 1.5, 0.75])
    assert crossing_table("inference", records) is None
    assert crossing_table("scaling batch", records) is None


@pytest.mark.no_cover
@pytest.mark.slow
def test_tables_and_the_picture(tmp_path: Path) -> None:
    run = run_of([*training_records(), *training_records("bfloat16")])
    page = render_page(run)
    assert "Crossing points by batch:" in page
    assert "| float32 | checkpoint | none measured | 0.600x | 0.300x |" in page
    assert "|  | hrnet_fast memory=fast | 2.00 to 6.35 | 0.667x | 0.750x |" in page
    (picture,) = draw_pictures(run, tmp_path / "pictures")
    assert picture.name == "training.png"
    assert Image.open(picture).height > 600
    paths = write_report([run], tmp_path / "report")
    assert sum("Crossing points by batch" in p.read_text(encoding="utf-8") for p in paths if p.suffix != ".png") == 2
