"""The engine against eager PyTorch, ``torch.compile``, timm, ONNX Runtime and OpenVINO; and the memory of a call."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import hrnet_fast as hf
from benchmarks.harness import Case, Entry, Session
from benchmarks.networks import exact, images, network, work
from benchmarks.peers import PEERS, copied_setup, timm_network
from hrnet_fast.measure import peak_activations

# A pose network, and the classification network from whose weights the others are trained.
NETWORKS = {"hrnetv1_w32_pose": (256, 192), "hrnet_w18_c": (224, 224)}
ON_CUDA = {"hrnetv1_w32_pose": (256, 192), "hrnetv1_w48_pose": (384, 288), "hrnetv2_w48_seg": (1024, 2048)}
TIMM = {"hrnet_w18_c": "hrnet_w18", "hrnet_w18_small": "hrnet_w18_small"}
CASES = [(name, batch) for batch in (1, 8) for name in {**NETWORKS, **ON_CUDA}]


@pytest.mark.parametrize(("name", "batch"), CASES)
def bench_inference(benchmark: BenchmarkFixture, session: Session, name: str, batch: int) -> None:
    cuda = session.device.type == "cuda"
    size = (ON_CUDA if cuda else NETWORKS).get(name)
    if size is None or (batch > 1 and size[0] >= 1024):
        pytest.skip(f"not a case on {session.device.type}")
    if not session.measuring:
        if (name, batch) != ("hrnet_w18_c", 1):
            pytest.skip("measured, not part of the smoke test")
        name, size = "hrnet_w18_small", (64, 64)
    model, x = network(name), images(batch, size, session.device)
    truth = functools.cache(functools.partial(exact, copy.deepcopy(model), x))
    model = model.to(session.device)
    for dtype in session.dtypes:
        cost = work(copy.deepcopy(model), x, dtype)
        entries = {}
        for contender, c in (PEERS | ({"timm": timm_network(TIMM[name])} if name in TIMM else {})).items():
            reason = c.unavailable(session.device.type, dtype, session.asked)
            if reason is not None and reason.startswith("not in"):
                continue  # the peer does not have this dtype: no record
            if not session.measuring and not contender.startswith(("eager", "timm", "hrnet_fast")):
                continue
            entries[contender] = Entry(copied_setup(model, c.prepare, x, dtype), reason, exact=truth, **cost)
        case = Case("inference", f"{name} {size[0]}x{size[1]} batch {batch}", "inference", dtype)
        case.params.update(model=name, batch=batch, height=size[0], width=size[1])
        timed = benchmark if dtype == session.dtypes[0] else _Once()
        seconds = 6 if session.scale == "small" else 20
        session.time_networks(timed, case, entries, seconds=seconds, baseline="eager channels-last")


class _Once:
    """Replaces pytest-benchmark's fixture from the second dtype on: the fixture measures once only."""

    extra_info: dict[str, Any]

    def __init__(self) -> None:
        self.extra_info = {}

    def pedantic(self, call: Any, rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds):
            call()


@pytest.mark.usefixtures("within_budget")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_memory(benchmark: BenchmarkFixture, session: Session, dtype: str) -> None:
    """Bytes of maps alive at once in a call of W48 segmentation, against eager in the same dtype."""
    if session.scale == "small" and dtype != str(session.dtypes[0])[6:]:
        pytest.skip("the share is that of the first dtype: not a case of this scale")
    precision, size = getattr(torch, dtype), ((512, 1024) if session.measuring else (64, 128))
    x = images(1, size).to(precision)
    name = "hrnetv2_w48_seg" if session.measuring else "hrnetv2_w18_small_v1_seg"
    model = network(name).to(precision)

    def plain() -> Any:
        with torch.no_grad():
            return model(x)

    eager = peak_activations(plain)
    engine = hf.optimize_for_inference(model, x)
    benchmark.pedantic(lambda: engine(x), rounds=1)
    share = engine.memory() / eager
    case = Case("memory", f"{name} {size[0]}x{size[1]} batch 1", "inference memory", precision, {"model": name})
    session.add_bytes(case, "eager channels-last", eager, "maps alive at once")
    session.add_bytes(case, "hrnet_fast engine", engine.memory(), "maps alive at once")
    benchmark.extra_info["share"] = round(share, 3)
    assert share < 0.75 or not session.measuring
