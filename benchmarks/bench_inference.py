"""The engine against what users would run a network with instead, all in one run: time, set-up, memory."""

from __future__ import annotations

import os
import time
from typing import Any

import peers
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.measure import interleaved_seconds, peak_activations, relative_error

NETWORKS = {"hrnetv1_w32_pose": (256, 192), "hrnet_w18_c": (224, 224)}
# Compiling takes Inductor minutes per network: measured when asked for.
SLOW = os.environ.get("HRNET_FAST_SLOW_PEERS") == "1"


def network(name: str) -> Any:
    torch.manual_seed(0)
    return hf.create_model(name, impl="reference").eval()


def leaves(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", NETWORKS)
def bench_inference(benchmark: BenchmarkFixture, measuring: bool, name: str, batch: int, dtype: str) -> None:
    if not measuring and (batch > 1 or name != "hrnet_w18_c"):
        pytest.skip("one case is enough for a smoke test")
    precision = getattr(torch, dtype)
    x = torch.randn(batch, 3, *(NETWORKS[name] if measuring else (64, 64)))
    model = network(name)
    makers = peers.available(precision, SLOW) if measuring else {"eager": peers.eager}
    calls, setup = {}, {}
    for peer, make in makers.items():
        start = time.perf_counter()
        calls[peer] = make(model, x, precision)
        setup[peer] = time.perf_counter() - start
    if dtype == "bfloat16":
        calls["eager_float32"] = peers.eager(model, x, torch.float32)
    start = time.perf_counter()
    engine = hf.optimize_for_inference(model, x, dtype=precision)
    engine(x)
    setup["engine"] = time.perf_counter() - start
    calls["engine"] = lambda: engine(x)

    exact = [t.double() for t in leaves(network(name).double()(x.double()).detach())]
    errors = {peer: relative_error(leaves(call()), exact) for peer, call in calls.items()}
    rounding = 2.0 ** (-8 if dtype == "bfloat16" else -22)
    limit = 2 * errors["eager"] + rounding
    for peer in [p for p in calls if errors[p] > limit]:  # no figure for a wrong result
        assert peer != "engine", f"error {errors[peer]:.1e}, eager's own {errors['eager']:.1e}"
        del calls[peer]
    if not measuring:
        benchmark.pedantic(calls["engine"], rounds=1)
        return
    seconds = interleaved_seconds(calls, rounds=15, warmup=3)
    benchmark.pedantic(calls["engine"], rounds=15, warmup_rounds=1)
    figures = {f"{peer}_ms": round(s * 1e3, 2) for peer, s in seconds.items()}
    figures |= {f"{peer}_setup_s": round(s, 2) for peer, s in setup.items()}
    figures |= {f"times_{peer}": round(s / seconds["engine"], 2) for peer, s in seconds.items() if peer != "engine"}
    benchmark.extra_info.update(figures)
    print(f"\n{name} batch {batch} {dtype}: {figures}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_memory(benchmark: BenchmarkFixture, measuring: bool, dtype: str) -> None:
    """Maps alive at once in a call: W48 segmentation, against eager in the same dtype."""
    precision = getattr(torch, dtype)
    x = torch.randn(1, 3, *((512, 1024) if measuring else (64, 128))).to(precision)
    model = network("hrnetv2_w48_seg").to(precision)

    def plain() -> Any:
        with torch.no_grad():
            return model(x)

    eager = peak_activations(plain)
    engine = hf.optimize_for_inference(model, x)
    benchmark.pedantic(lambda: engine(x), rounds=1)
    share = engine.memory() / eager
    benchmark.extra_info.update({"eager_bytes": eager, "engine_bytes": engine.memory(), "share": round(share, 3)})
    print(f"\nmemory {dtype}: {share:.3f} of eager's {eager / 2**20:.0f} MiB")
    assert share < 0.75
