"""The paper's tables 17 (pose), 18 (segmentation) and 19 (detection): HRNet and its rivals, on this device.

The paper measured on a V100 with PyTorch 1.0. The ratio of HRNet to a rival carries over to other hardware. The
paper's figure is recorded beside each of ours. Table 13 is these tables' summary.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks.harness import Case, Entry, Session
from benchmarks.networks import exact, images, network, tensors, work
from benchmarks.peers import PEERS, copied_setup
from benchmarks.rivals import RIVALS, rival
from hrnet_fast.complexity import paper_tables
from hrnet_fast.demo.contenders import engine_of
from hrnet_fast.measure import Call, peak_activations
from hrnet_fast.training.accelerate import MEMORY

OURS = {
    "hrnetv1_w32_pose": "hrnetv1_w32_pose",
    "hrnetv1_w48_pose": "hrnetv1_w48_pose",
    "hrnetv2_w48_seg": "hrnetv2_w48_seg",
    "hrnetv2_w48_seg_ocr": "hrnetv2_w48_seg_ocr",  # of the authors' code, without a row in the paper
    "faster_rcnn_hrnetv2p_w18": "hrnetv2p_w18_det",
    "faster_rcnn_hrnetv2p_w32": "hrnetv2p_w32_det",
    "faster_rcnn_hrnetv2p_w48": "hrnetv2p_w48_det",
}
# The levels of `accelerate` other than its default.
_DEFAULT = inspect.signature(hf.accelerate).parameters["memory"].default
LEVELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    f"hrnet_fast memory={level}": functools.partial(hf.accelerate, memory=level)
    for level in MEMORY
    if level != _DEFAULT
}
# timm has none of these networks: its HRNets classify.
HRNET = ("eager channels-last", "compile", "compile reduce-overhead", "compile max-autotune", "hrnet_fast engine")
RIVAL = ("eager channels-last", "compile", "compile reduce-overhead", "compile max-autotune")


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: its sizes, and smaller ones for CPUs. Training batches are those of one GPU."""

    key: str
    inference: tuple[int, int]
    training: tuple[int, int]
    batches: tuple[int, ...]
    training_batch: int
    small_inference: tuple[int, int]
    small_training: tuple[int, int]
    small_batches: tuple[int, ...]

    @property
    def number(self) -> str:
        return self.key.split("_")[0]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows of the paper by name: their columns and figures."""
        table = paper_tables()["timing"][self.key]
        rows = {name: dict(zip(table["columns"], row, strict=True)) for name, row in table["rows"].items()}
        return rows | ({"hrnetv2_w48_seg_ocr": {}} if self.number == "18" else {})


TABLES = {
    "17": PaperTable("17_pose", (256, 192), (256, 192), (1, 4, 8, 16), 32, (256, 192), (128, 96), (1,)),
    "18": PaperTable("18_segmentation", (1024, 2048), (512, 1024), (1, 4), 2, (192, 384), (64, 128), (1,)),
    "19": PaperTable("19_detection", (800, 1344), (800, 1344), (1, 4), 2, (224, 384), (96, 160), (1,)),
}
SMOKE = ("simplebaseline_r50", "hrnetv1_w32_pose")


def model_of(row: str) -> nn.Module:
    return network(OURS[row]) if row in OURS else rival(row)


def paper(table: PaperTable, row: str, column: str, scale: float = 1.0) -> dict[str, Any] | None:
    """The paper's own figure, in this package's units."""
    value = table.rows()[row].get(column)
    if value is None:
        return None
    return {"table": table.number, "row": row, "column": column, "value": value * scale}


def about(table: PaperTable, row: str, batch: int, size: tuple[int, int]) -> dict[str, Any]:
    role = "hrnet" if row in OURS else "rival"
    return {"table": table.number, "row": row, "role": role, "batch": batch, "height": size[0], "width": size[1]}


def chosen(session: Session, table: PaperTable) -> list[str]:
    return [row for row in table.rows() if session.measuring or row in SMOKE]


@pytest.mark.parametrize("batch", [1, 4, 8, 16])
@pytest.mark.parametrize("number", TABLES)
def bench_inference_rows(benchmark: BenchmarkFixture, session: Session, number: str, batch: int) -> None:
    """Inference and its memory, of all rows of a table."""
    table, small = TABLES[number], session.scale == "small"
    size = table.small_inference if small else table.inference
    if batch not in (table.small_batches if small else table.batches) or (not session.measuring and number != "17"):
        pytest.skip("not a case of this scale")
    if not session.measuring:
        size = (64, 64)
    dtype = session.dtypes[0]
    x = images(batch, size, session.device)
    where = f"{size[0]}x{size[1]} batch {batch}"
    entries: dict[str, Entry] = {}
    weights: dict[str, int] = {}
    for row in chosen(session, table):
        model = model_of(row)
        truth = functools.cache(functools.partial(exact, copy.deepcopy(model), x.cpu()))
        cost = work(copy.deepcopy(model), x, dtype)
        model = model.to(session.device)
        given = {"params": about(table, row, batch, size), "paper": paper(table, row, f"infer_s_bs{batch}"), **cost}
        for name in HRNET if row in OURS else RIVAL:
            reason = PEERS[name].unavailable(session.device.type, dtype, session.asked)
            if reason is not None and not (session.measuring and "minutes" in reason and row in OURS):
                continue
            make = copied_setup(model, PEERS[name].prepare, x, dtype)
            shown = {"case": f"{row} {where}", "contender": name}
            entries[f"{row}: {name}"] = Entry(make, reason, exact=truth if row in OURS else None, **shown, **given)
        weights[row] = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    case = Case(f"table {number}", f"{table.key[3:]} {where}", "inference", dtype)
    session.time_networks(benchmark, case, entries, seconds=5 if small else 25, rounds=(3, 15))
    for row in weights if session.measuring else ():
        given = {"params": about(table, row, batch, size), "paper": paper(table, row, f"infer_mem_g_bs{batch}", 2**30)}
        memory = Case(case.suite, f"{row} {where}", "inference memory", dtype)
        _memory(session, memory, row, weights[row], given)


def _memory(session: Session, case: Case, row: str, weights: int, given: dict[str, Any]) -> None:
    """Bytes of weights and of maps alive at once, of the calls that were timed."""
    eager, name = "eager channels-last", "hrnet_fast engine"
    plain, engine = session.calls.get(f"{row}: {eager}"), engine_of(session.calls.get(f"{row}: {name}"))
    if plain is not None:
        session.add_bytes(case, eager, weights + _peak(plain, session), **given)
    if engine is not None:
        session.add_bytes(case, name, weights + engine.memory(), **given)


def _peak(call: Call, session: Session) -> int:
    if session.device.type != "cuda":
        return peak_activations(call)
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("number", TABLES)
def bench_training_rows(benchmark: BenchmarkFixture, session: Session, number: str) -> None:
    """A training step (forward, backward, SGD) and its memory, of all rows of a table."""
    table, small = TABLES[number], session.scale == "small"
    size, batch = (table.small_training, 2) if small else (table.training, table.training_batch)
    if not session.measuring:
        if number != "17":
            pytest.skip("measured, not part of the smoke test")
        size = (64, 64)
    dtype = torch.float32 if session.device.type == "cpu" else session.dtypes[-1]
    x = images(batch, size, session.device)
    entries: dict[str, Entry] = {}
    where = f"{size[0]}x{size[1]} batch {batch}"
    case = Case(f"table {number}", f"{table.key[3:]} {where}", "training step", dtype)
    for row in chosen(session, table):
        model = _without_dropout(model_of(row)).to(session.device).train()
        given = {"params": about(table, row, batch, size)}
        truth = functools.cache(functools.partial(exact, copy.deepcopy(model), x)) if row in OURS else None
        kinds: dict[str, Callable[[nn.Module], nn.Module]] = {"eager channels-last": lambda m: m}
        if row in OURS:
            kinds |= {"hrnet_fast accelerate": hf.accelerate, **LEVELS}
        for name, prepare in kinds.items():
            ready = prepare(copy.deepcopy(model))
            step = _step(ready, x, dtype)
            shown = {"case": f"{row} {where}", "contender": name}
            if name in LEVELS:  # beside the paper and its rivals stands what `accelerate` does by default
                entries[f"{row}: {name}"] = Entry(lambda step=step: step, exact=truth, **shown)
                continue
            weights = paper(table, row, "train_s_per_iter")
            entries[f"{row}: {name}"] = Entry(lambda step=step: step, paper=weights, exact=truth, **shown, **given)
            if session.measuring and session.left() > 0:
                memory = Case(case.suite, shown["case"], "training memory", dtype)
                size_of = 2 * sum(p.numel() * 4 for p in model.parameters())  # weights and their gradients
                peak = size_of + _peak(step, session)
                gigabytes = paper(table, row, "train_mem_g", 2**30)
                session.add_bytes(memory, name, peak, paper=gigabytes, **given)
    session.time_networks(benchmark, case, entries, seconds=5 if small else 25, rounds=(3, 15))


def _step(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Call:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # with rate 0, every step has the same result

    def call() -> list[Tensor]:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            outputs = tensors(model(x))
            loss = torch.stack([t.float().square().mean() for t in outputs]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        # Not the loss: the error of one number may be small by chance.
        return [t.detach() for t in outputs]

    return call


def _without_dropout(model: nn.Module) -> nn.Module:
    """Turn dropout off, so that results can be compared."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.0
    return model


assert set(RIVALS) | set(OURS) == {row for table in TABLES.values() for row in table.rows()}
