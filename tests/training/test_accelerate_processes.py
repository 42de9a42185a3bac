"""Accelerated networks under DistributedDataParallel: two processes compute what one with both batches would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import copy
import sys
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[3])
from tiny_networks import tiny

from hrnet_fast.training import accelerate, explain, restore

rank, store = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
target = torch.randn(4, 3, 16, 16, dtype=torch.float64)
own = slice(2 * rank, 2 * rank + 2)


def loss_of(out, part):
    return (out * target[part]).mean() + out.square().mean()


def close(a, b, what):
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-11), (what, (a - b).abs().max())


def all_fast(model):
    assert all(block.fast and not block.reason for block in explain(model).blocks), str(explain(model))


plain = restore(tiny("v1")).double().train()
whole = copy.deepcopy(plain)
loss = loss_of(whole(x), slice(None))
loss.backward()

# Joint statistics: the joint batch's loss, gradients and running statistics.
for converted_first, memory in ((True, "min"), (False, "lean")):
    model = copy.deepcopy(plain)
    parallel = DistributedDataParallel(model)  # first: it refuses modules on the CPU that are synchronised already
    for step in (0, 1):
        if step == converted_first:
            accelerate(model, impl="reference", memory=memory)
        else:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())
    mine = loss_of(parallel(x[own]), own)
    mine.backward()
    all_fast(model)
    mean = mine.detach().clone()
    distributed.all_reduce(mean)
    close(mean / 2, loss.detach(), "loss")
    for (name, p), q in zip(model.named_parameters(), whole.parameters(), strict=True):
        close(p.grad, q.grad, name)
    for (name, b), c in zip(model.named_buffers(), whole.named_buffers(), strict=True):
        close(b.double(), c[1].double(), name)

# Statistics of its own in each process: the average of two plain networks' gradients. Two steps, since a parameter
# without gradient in the first would stop the second.
model = DistributedDataParallel(accelerate(copy.deepcopy(plain), impl="reference", memory=memory))
for _ in range(2):
    model.zero_grad()
    loss_of(model(x[own]), own).backward()
all_fast(model)
average = None
for part in (slice(0, 2), slice(2, 4)):
    single = copy.deepcopy(plain)
    loss_of(single(x[part]), part).backward()
    found = [p.grad for p in single.parameters()]
    average = found if average is None else [(a + b) / 2 for a, b in zip(average, found)]
for (name, p), q in zip(model.named_parameters(), average, strict=True):
    close(p.grad, q, name)

# Gradients may live in the buckets, and several batches be gathered before they are exchanged.
model = DistributedDataParallel(
    accelerate(copy.deepcopy(plain), impl="reference", memory=memory), gradient_as_bucket_view=True
)
with model.no_sync():
    loss_of(model(x[own]), own).backward()
loss_of(model(x[own]), own).backward()
for (name, p), q in zip(model.named_parameters(), average, strict=True):
    close(p.grad, 2 * q, name)

# One process refuses nothing alone: recognising is no business of the others.
if rank == 0:
    from upstream_standins import SegmentationModule, net

    all_fast(accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(net(SegmentationModule)), impl="reference"))
distributed.barrier()
distributed.destroy_process_group()
print("joined")
"""


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_compute_what_one_would(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    helpers = str(Path(__file__).parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store"), helpers],
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
