"""What the training benchmark measures on CUDA: memory by the caching allocator, and the host's time."""

from __future__ import annotations

import copy

import device_counters
import pytest
import torch
from tiny_networks import image

from benchmarks.bench_training import network
from benchmarks.trainers import TRAINERS, Step, host_seconds, step_memory

pytestmark = pytest.mark.nulldevice


@pytest.mark.slow
def test_memory_and_host_time() -> None:
    model, found = network(4).cuda(), {}
    for name, trainer in TRAINERS.items():
        if trainer.slow:
            continue
        step = Step(trainer, copy.deepcopy(model), image(64, 64, batch=2).cuda(), torch.bfloat16)
        step()
        with device_counters.counting() as n:
            found[name] = step_memory(step)
        assert (n.errors, n.to_host) == (0, 0), name
        assert found[name].peak > found[name].kept > 0
        assert len(host_seconds(step, rounds=2)) == 2
    kept = {name: memory.kept for name, memory in found.items()}
    assert kept["checkpoint"] < kept["checkpoint selective"] < kept["eager channels-last"]
    assert kept["hrnet_fast memory=min"] < kept["hrnet_fast memory=lean"] < kept["hrnet_fast memory=fast"]
