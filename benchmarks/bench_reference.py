"""The reference networks in eager PyTorch: the floor that every fast path is measured against."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from hrnet_fast import create_model
from hrnet_fast.measure import operator_calls, peak_activations
from hrnet_fast.models.registry import get_variant

# Segmentation at a quarter of the paper's sides: 1024x2048 takes half a minute a call on two cores.
NETWORKS = {
    "hrnetv1_w32_pose": (256, 192),
    "hrnetv2_w48_seg": (256, 512),
    "hrnet_w18_c": (224, 224),
    "hrnetv2p_w32_det": (512, 512),
}


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", NETWORKS)
def bench_reference(benchmark: BenchmarkFixture, measuring: bool, name: str, memory_format: str) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    size = NETWORKS[name] if measuring else (64, 64)
    model = create_model(name, impl="reference").eval().to(memory_format=layout)
    x = torch.randn(1, 3, *size).to(memory_format=layout)
    with torch.inference_mode():
        benchmark.pedantic(lambda: model(x), rounds=7, warmup_rounds=2)
        benchmark.extra_info.update(
            task=get_variant(name).task,
            input=size,
            threads=torch.get_num_threads(),
            operator_calls=operator_calls(lambda: model(x)),
            peak_activation_bytes=peak_activations(lambda: model(x)),
        )
