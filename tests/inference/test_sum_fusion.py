"""Sums that are fused with their 1x1 convolutions: equal, ordered on streams, and only where they measure faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from plan_cases import tensors_of, tiny_case
from test_cuda_executor import StandIn
from test_stream_schedule import unordered
from tiny_networks import enliven, image, maps, relative_l2, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from hrnet_fast.inference.execution import autotuner as autotuner_module
from hrnet_fast.inference.execution import fused_sum_trial
from hrnet_fast.inference.execution.arena import ArenaMaps, adoptable, arena_layout
from hrnet_fast.inference.execution.arrangement import MODES
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.cuda_executor import CudaExecutor
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.execution.fused_sum_trial import FUSED
from hrnet_fast.inference.execution.launch_groups import buffer_lifetimes, launch_groups
from hrnet_fast.inference.execution.stream_schedule import schedule
from hrnet_fast.inference.execution.sum_fusion import find_sum_fusions
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.execution.tuning_cache import TuningResult
from hrnet_fast.inference.planning.lowering import make_plan

CPU = torch.device("cpu")
HEADS = ["v1", "v2", "v2p", "ocr", "face"]
BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def fused_executor(case: tuple[Any, Any, Tensor], **options: Any) -> TorchExecutor:
    return TorchExecutor(*case[:2], "cpu", autotuner=Autotuner(CPU, case[0].dtype, FUSED), **options)


def assert_equals_evaluator(made: Any, case: tuple[Any, Any, Tensor]) -> None:
    for actual, expected in zip(maps(made), maps(evaluate(*case)), strict=True):
        assert relative_l2(actual, expected) <= BOUNDS[case[0].dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_equals_separate_steps(head: str, dtype: torch.dtype) -> None:
    case = tiny_case(head, dtype)
    run = fused_executor(case)
    fusions = find_sum_fusions(case[0])
    assert len(run.groups) == len(case[0].steps) - sum(len(f.convs) for f in fusions) < len(case[0].steps)
    for _ in range(2):
        assert_equals_evaluator(run(case[2]), case)
    assert any("launches of upsample_conv1x1_sum" in line for line in run.describe())
    assert [i for i, _ in run.profile(case[2], rounds=1)] == list(range(len(case[0].steps)))


@pytest.mark.slow
def test_odd_sizes_and_batches() -> None:
    for batch in (0, 3):
        case = tiny_case("v2", torch.float32, batch, 65, 97)
        made, expected = fused_executor(case)(case[2]), evaluate(*case)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_refresh_reaches_fused_weights() -> None:
    model, x = tiny("v2"), image()
    plan = make_plan(model, tuple(x.shape), torch.float32)
    run = fused_executor((plan, tensors_of(model), x))
    places = [
        (w.bias.data_ptr(), w.weights[-1].data_ptr()) for w in run._fused_weights.values() if w.weights[-1] is not None
    ]
    enliven(model, seed=5)
    run.refresh(tensors_of(model))
    after = [
        (w.bias.data_ptr(), w.weights[-1].data_ptr()) for w in run._fused_weights.values() if w.weights[-1] is not None
    ]
    assert places == after != []
    assert_equals_evaluator(run(x), (plan, tensors_of(model), x))


@pytest.mark.parametrize("mode", MODES)
def test_in_every_arrangement(mode: str, grouped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaExecutor, "_grouped_unsupported_reason", lambda self: None)
    case = tiny_case("v1", torch.float32)
    autotuner = Autotuner(CPU, torch.float32, FUSED)
    run = CudaExecutor(*case[:2], "cpu", mode, autotuner=autotuner, backend=StandIn())
    assert_equals_evaluator(run(case[2]), case)
    assert bool(grouped) == (mode == "grouped")
    assert any(FUSED in line for line in run.describe())


@pytest.mark.parametrize("adopted", [False, True])
@pytest.mark.parametrize("head", ["v1", "v2"])
def test_every_hazard_of_fused_sums_is_ordered(head: str, adopted: bool) -> None:
    plan, _, _ = tiny_case(head, torch.float16, 1, 32, 32)
    groups = launch_groups(plan, fusions=find_sum_fusions(plan))
    layout = arena_layout(plan, adoptable(plan) if adopted else (), buffer_lifetimes(plan, groups))
    places, made = ArenaMaps(plan, layout, CPU), schedule(plan, layout, groups)
    assert unordered(plan, places, groups, made) == []


class Shared(nn.Module):
    """A 1x1 convolution whose result a sum reads, and `other` reads too."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.point, self.last, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1), other

    def forward(self, x: Tensor) -> Any:
        large = self.stem(x)
        small = self.point(self.down(large))
        total = F.relu(large + F.interpolate(small, size=large.shape[2:]))
        if self.other == "returned":
            return total, small
        if self.other == "convolution":
            return total, self.last(small)
        if self.other == "two modes":
            return total + F.interpolate(small, size=large.shape[2:], mode="bilinear")
        return total


@pytest.mark.parametrize(("other", "fused"), [("", 1), ("returned", 0), ("convolution", 0), ("two modes", 2)])
def test_convolutions_that_others_read_stay(other: str, fused: int) -> None:
    model, x = Shared(other).double().eval(), torch.randn(2, 3, 9, 11, dtype=torch.float64)
    plan = make_plan(model, tuple(x.shape), torch.float64)
    assert sum(len(fusion.sums) for fusion in find_sum_fusions(plan)) == fused
    assert_equals_evaluator(fused_executor((plan, tensors_of(model), x))(x), (plan, tensors_of(model), x))


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the reference implementation a candidate."""
    monkeypatch.setattr(autotuner_module, "operator_unsupported_reason", lambda *args: None)


@pytest.mark.parametrize("winner", ["separate", FUSED])
def test_only_the_fastest_is_used(winner: str, offered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fastest(key: str, candidates: Mapping[str, Callable[[], Any]], **options: Any) -> TuningResult:
        for candidate in candidates.values():
            candidate()
        return TuningResult(key, winner if winner in candidates else "library")

    monkeypatch.setattr(autotuner_module, "fastest", fastest)
    case = tiny_case("v2", torch.float32)
    run = TorchExecutor(*case[:2], "cpu", autotuner=Autotuner(CPU, torch.float32))
    assert (len(run.groups) < len(case[0].steps)) == (winner == FUSED)
    assert any(line.strip().startswith(FUSED) and line.endswith(f": {winner}") for line in run.describe())
    assert_equals_evaluator(run(case[2]), case)


def test_another_result_is_rejected(offered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_sum_trial.run_fused_sum
    monkeypatch.setattr(fused_sum_trial, "run_fused_sum", lambda *args: right(*args) * 1.01)
    case = tiny_case("v1", torch.float32)
    run = TorchExecutor(*case[:2], "cpu", autotuner=Autotuner(CPU, torch.float32))
    results = [r for what, r in run.autotuner.results.items() if isinstance(what, str)]
    assert results
    assert all(r.winner == "separate" and "differs" in r.reasons[FUSED] for r in results)
    assert len(run.groups) == len(case[0].steps)


def test_nothing_is_fused_unmeasured(offered: None) -> None:
    case = tiny_case("v1", torch.float32)
    for autotuner in (Autotuner(CPU, torch.float32, "library"), Autotuner(CPU, torch.float32, budget=0.0)):
        assert len(TorchExecutor(*case[:2], "cpu", autotuner=autotuner).groups) == len(case[0].steps)
    unmeasured = [result for what, result in autotuner.results.items() if isinstance(what, str)]
    assert unmeasured
    assert all("the time for measuring was spent" in str(result) for result in unmeasured)
