"""The engine on a CUDA device against eager and ``torch.compile``, all in one run. Skipped without a device.

Compiling takes minutes per network and mode: ``HRNET_FAST_COMPILE_MODES`` names other modes, or with "" none.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
from bench_inference import leaves, network
from pytest_benchmark.fixture import BenchmarkFixture

import hrnet_fast as hf
from hrnet_fast.measure import interleaved_seconds, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CASES = {
    "hrnetv1_w32_pose": ((256, 192), torch.float16),
    "hrnetv1_w48_pose": ((384, 288), torch.float16),
    "hrnetv2_w48_seg": ((1024, 2048), torch.bfloat16),
}
MODES = [m for m in os.environ.get("HRNET_FAST_COMPILE_MODES", "reduce-overhead,max-autotune").split(",") if m]


@pytest.mark.parametrize("name", CASES)
def bench_inference_cuda(benchmark: BenchmarkFixture, measuring: bool, name: str) -> None:
    size, dtype = CASES[name]
    x = torch.randn(1, 3, *(size if measuring else (64, 128)), device="cuda")
    # Half precision throughout, as who deploys it runs it; channels-last is the fast layout of cuDNN.
    half = network(name).to("cuda", dtype, memory_format=torch.channels_last)
    given = x.to(dtype).contiguous(memory_format=torch.channels_last)
    calls: dict[str, Any] = {"eager": lambda: half(given)}
    setup: dict[str, float] = {}
    start = time.perf_counter()
    engine = hf.optimize_for_inference(network(name).to("cuda"), x, dtype=dtype)
    engine(x)
    setup["engine"] = time.perf_counter() - start
    calls["engine"] = lambda: engine(x)
    for mode in MODES if measuring else ():
        start = time.perf_counter()
        compiled = torch.compile(half, mode=mode)
        with torch.no_grad():
            compiled(given)
        setup[mode] = time.perf_counter() - start
        calls[mode] = lambda compiled=compiled: compiled(given)

    with torch.no_grad():
        exact = [t.double() for t in leaves(network(name).to("cuda").double()(x.double()))]
        errors = {peer: relative_error(leaves(call()), exact) for peer, call in calls.items()}
        assert errors["engine"] <= 2 * errors["eager"] + 2.0**-8  # no figure for a wrong result
        seconds = interleaved_seconds(calls, rounds=30 if measuring else 1, warmup=5 if measuring else 1)
        benchmark.pedantic(calls["engine"], rounds=1)
    figures = {f"{peer}_ms": round(s * 1e3, 3) for peer, s in seconds.items()}
    figures |= {f"{peer}_setup_s": round(s, 2) for peer, s in setup.items()}
    benchmark.extra_info.update(figures)
    benchmark.extra_info["explained"] = engine.explain()
    print(f"\n{name} {tuple(x.shape)} {dtype}: {figures}")
