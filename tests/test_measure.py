"""The measures: operator calls, memory, multiply-adds, errors; and the paper's complexity tables."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from simulated_time import simulate_time
from tiny_detectors import CLASSES, tiny_detector, tiny_detector_config

from hrnet_fast.complexity import (
    Counting,
    complexity_entries,
    complexity_row,
    detector_complexity,
    network_complexity,
    paper_tables,
)
from hrnet_fast.config import HRNetConfig
from hrnet_fast.measure import InterleavedTimer, error_limit, operator_calls, peak_activations, relative_error
from hrnet_fast.models import create_model


def test_peak_counts_live_storages_once() -> None:
    def chain() -> torch.Tensor:
        a = torch.ones(1000)
        b = a + 1
        view = b.view(10, 100)
        del a
        return (view + 1).relu_()

    assert peak_activations(chain) == 8000


@pytest.mark.parametrize("inference", [True, False])
def test_weights_are_no_activations(inference: bool) -> None:
    """Neither through a view (a linear layer transposes its weight) nor changed in place (running statistics)."""
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(100), torch.nn.Linear(100, 50), torch.nn.Linear(50, 10))
    mean = layers[0].running_mean
    x = torch.zeros(1, 100)

    def call() -> torch.Tensor:
        mean.mul_(0.5)
        x.add_(1).t()
        return (x @ layers[1].weight.t() @ layers[2].weight.t()).detach()

    with torch.inference_mode(inference):
        assert peak_activations(call) == 4 * (50 + 10)
        assert peak_activations(lambda: layers[1](x).sum()) == 4 * (50 + 1)


def test_constants_are_activations() -> None:
    assert peak_activations(lambda: torch.tensor([1.0, 2.0])) == 8


def test_views_and_allocations_are_no_operator_calls() -> None:
    x = torch.ones(4, 4)
    assert operator_calls(lambda: (x.view(16), x.t(), torch.empty(3))) == 0
    assert operator_calls(lambda: [(x + 1).relu_(), x.sum()]) == 3


def test_a_classification_forward_is_the_known_number_of_operators() -> None:
    """325 convolutions and normalisations, 284 ReLUs, 177 sums, 31 upsamplings, pooling and classifier."""
    model = create_model("hrnet_w18_c", impl="reference").eval()
    x = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        calls = operator_calls(lambda: model(x))
    assert calls == 2 * 325 + 284 + 177 + 31 + len(("pooling", "classifier"))


def test_interleaved_rounds_tell_slow_from_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_time(monkeypatch)
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = {"slow": lambda: call("slow", 0.02), "fast": lambda: call("fast", 0.001)}
    timer = InterleavedTimer(calls, torch.device("cpu"))
    for _ in range(3):
        timer.round()
    assert timer.times == {
        "slow": pytest.approx([0.02] * 3, rel=0.01),
        "fast": pytest.approx([0.001] * 3, rel=0.01),
    }
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast"]  # each round starts with the next call


def test_error_limit_is_twice_the_references_error_and_a_rounding() -> None:
    assert error_limit(0.0, torch.float32) == 2.0**-22
    assert error_limit(0.5, torch.bfloat16) == error_limit(0.5, torch.float16) == 1.0 + 2.0**-8


def test_relative_error_takes_the_worst_output() -> None:
    exact = [torch.ones(4), torch.full((4,), 2.0)]
    assert relative_error([torch.ones(4), torch.full((4,), 3.0)], exact) == pytest.approx(0.5)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    with pytest.raises(ValueError, match="zip"):
        relative_error([torch.ones(1)], exact)


@pytest.mark.slow
def test_complexity_counts_by_hand() -> None:
    config = HRNetConfig.make(width=4, head="features", num_blocks=1, num_modules=(1, 1, 1))
    params, gflops = network_complexity(config, (64, 64))
    twice, more = network_complexity(config, (128, 64))
    assert params == twice
    assert more == pytest.approx(2 * gflops)
    stem = (3 * 9 * 64 * 32 * 32 + 64 * 9 * 64 * 16 * 16) / 2**30
    assert gflops > stem


def test_detectors_complexity_by_hand() -> None:
    """What proposals and masks add; a transposed convolution has a quarter of the products that each output's have."""
    config = tiny_detector_config("mask_rcnn")
    plain, boxes, masks, outputs = (
        detector_complexity(config, (64, 64), Counting(1, 1, "", **changes))
        for changes in ({}, {"proposals": 10}, {"masks": 10}, {"masks": 10, "transposed_at_outputs": True})
    )
    linear = 8 * 49 * 16 + 16 * 16 + 16 * (CLASSES + 1) + 16 * 4 * CLASSES
    assert boxes[1] - plain[1] == 10 * linear
    upsample = 14**2 * 8 * 8 * 4
    assert masks[1] - plain[1] == 10 * (14**2 * 9 * 8 * 8 + upsample + 28**2 * 8 * CLASSES)
    assert outputs[1] - masks[1] == 10 * 3 * upsample
    model = tiny_detector("mask_rcnn")
    norms = sum(p.numel() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters())
    without = detector_complexity(config, (64, 64), Counting(1, 1, "", norms=False))
    assert plain[0] == sum(p.numel() for p in model.parameters()) == without[0] + norms


@pytest.mark.slow
@pytest.mark.parametrize("entry", complexity_entries(), ids=lambda e: f"{e['table']}-{e['model']}-{e['input'][0]}")
def test_the_papers_complexity(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # No normalisation is counted; the counter would decompose each into a dozen operators.
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda x, *_: x)
    row = complexity_row(entry)
    if row.exact:
        assert row.agrees, (row.params, row.gflops)
    elif row.difference > 0.02:
        assert row.note, "a difference above 2% needs its explanation"
    else:
        assert row.difference <= 0.02


def test_every_hrnet_of_the_paper_is_counted() -> None:
    listed = [row["model"] for row in paper_tables()["complexity"] if "hrnet" in row["model"]]
    assert [row["model"] for row in complexity_entries()] == listed
    assert len(listed) == 36
