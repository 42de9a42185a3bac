"""Tuning of engines on CUDA, its host side: Triton kernels are compiled before anything is measured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_time import simulate_time
from test_host_engine import captured, engine_of, small
from tiny_networks import two_stages

from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.cuda_executor import CudaExecutor
from hrnet_fast.inference.execution.tactics import Geometry
from hrnet_fast.inference.planning.lowering import make_plan

pytestmark = pytest.mark.nulldevice


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 25])
def test_kernels_are_compiled_before_anything_is_measured(seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By threads, not between measurements; what is not begun in a minute stays unmeasured, and `explain` says so."""
    import triton.compiler

    clock, compilers = simulate_time(monkeypatch), set[str]()
    compile_kernel = triton.compiler.compile

    def compiled(*args: Any, **kwargs: Any) -> Any:
        clock.sleep(seconds)
        compilers.add(threading.current_thread().name.rpartition("_")[0])
        return compile_kernel(*args, **kwargs)

    monkeypatch.setattr(triton.compiler, "compile", compiled)
    engine = engine_of(two_stages().cuda(), small(), dtype=torch.bfloat16)
    assert captured(engine)
    assert compilers == {"hrnet_fast_compiler"}
    assert "Triton kernels compiled" in engine.explain()
    assert ("not measured" in engine.explain()) == (seconds == 25), engine.explain()


@pytest.mark.slow
def test_of_a_result_in_the_cache_the_winner_alone_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRNET_FAST_CACHE", str(tmp_path))
    model, x = two_stages().cuda(), small()
    first, again = (Autotuner(torch.device("cuda", 0), torch.bfloat16) for _ in range(2))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    CudaExecutor(make_plan(model, tuple(x.shape), torch.bfloat16), tensors, "cuda", "sequential", autotuner=first)
    measured = {g: result for g, result in first.results.items() if isinstance(g, Geometry) and result.seconds}
    assert measured
    for g, result in measured.items():
        weights: Any = None  # which no call reads before it is made
        assert set(again.launches(g, weights)) <= {result.winner}
        assert first.launches(g, weights) == {}
