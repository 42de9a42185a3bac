"""``bn_act(sync=True)`` in two processes: the results of one process that has both batches."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import measured_process

measured_process.start()

import sys
from datetime import timedelta

import torch
from torch import distributed

from hrnet_fast import InputError
from hrnet_fast.ops import bn_act

rank, store, impls = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
CHANNELS = 5
DTYPES = {"reference": torch.float64, "triton": torch.float32}


def close(a, b):
    tolerance = 1e-10 if a.dtype == torch.float64 else 1e-5
    assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), (a - b).abs().max()


def check(impl, counts, size, residual, relu, layout, momentum):
    torch.manual_seed(1)
    dtype = DTYPES[impl]
    maps = [torch.randn(sum(counts), CHANNELS, *size, dtype=dtype).contiguous(memory_format=layout) for _ in range(3)]
    x, extra, grad = maps
    weight, bias = torch.rand(CHANNELS, dtype=dtype) + 0.5, torch.randn(CHANNELS, dtype=dtype)
    own = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)

    def run(part, sync):
        leaves = [x[part].clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        if residual:
            leaves.append(extra[part].clone().requires_grad_())
        mean, variance, count = torch.zeros_like(weight), torch.ones_like(weight), torch.tensor(3)
        out = bn_act(
            *leaves[:3], mean, variance, residual=leaves[3] if residual else None,
            activation="relu" if relu else None, momentum=momentum, num_batches_tracked=count, sync=sync,
            impl=impl if sync else "reference",
        )
        assert count.item() == 4
        return out, mean, variance, torch.autograd.grad(out, leaves, grad[part])

    whole = run(slice(None), sync=False)
    mine = run(own, sync=True)
    close(mine[0], whole[0][own])
    close(mine[1], whole[1])
    close(mine[2], whole[2])
    close(mine[3][0], whole[3][0][own])
    if residual:
        close(mine[3][3], whole[3][3][own])
    for k in (1, 2):  # each process's own share; data parallelism adds them up
        total = mine[3][k].clone()
        distributed.all_reduce(total)
        close(total, whole[3][k])


last, first = torch.channels_last, torch.contiguous_format
for impl in impls:
    dtype = DTYPES[impl]
    check(impl, (2, 2), (4, 3), True, True, first, 0.1)
    check(impl, (1, 3), (4, 3), False, True, last, 0.3)
    check(impl, (0, 3), (4, 3), True, True, first, None)
    check(impl, (3, 0), (2, 3), True, False, last, 0.1)
    check(impl, (1, 1), (1, 1), False, False, first, 0.1)

    for batch, refused in ((1 - rank, True), (0, False)):  # one value over both processes, then none
        x = torch.randn(batch, CHANNELS, 1, 1, dtype=dtype, requires_grad=True)
        mean, variance = torch.zeros(CHANNELS), torch.ones(CHANNELS)
        try:
            bn_act(x, None, None, mean, variance, sync=True, impl=impl).sum().backward()
            assert not refused
        except InputError as error:
            assert refused and "1 over all processes" in str(error)
        assert not mean.any() and (variance == 1).all()

    x = torch.randn(2, CHANNELS, 3, 3, dtype=dtype, requires_grad=True)
    mean, variance = torch.zeros(CHANNELS, dtype=dtype), torch.ones(CHANNELS, dtype=dtype)
    close(
        bn_act(x, None, None, mean, variance, training=False, sync=True, impl=impl),
        bn_act(x, None, None, mean, variance, training=False, impl="reference"),
    )
    own = distributed.new_group([0]), distributed.new_group([1])
    close(bn_act(x, sync=True, process_group=own[rank], impl=impl), bn_act(x, impl="reference"))
distributed.destroy_process_group()
print("joined")
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_compute_what_one_would(tmp_path: Path) -> None:
    impls = ["reference", *(["triton"] if importlib.util.find_spec("triton") else [])]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "1"
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store"), *impls],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, err) in zip(processes, results, strict=True):
        assert process.returncode == 0, err[-3000:]
        assert "joined" in out
