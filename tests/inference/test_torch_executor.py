"""The torch executor against the evaluator: all dtypes of the machine, every tactic of a convolution."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from plan_cases import golden_case, tensors_of, tiny_case
from tiny_networks import ALL_HEADS, assert_same, enliven, image, maps, relative_l2, tiny
from torch import Tensor, nn

from hrnet_fast.errors import ImplementationError, InputError
from hrnet_fast.inference.execution.arena import adoptable
from hrnet_fast.inference.execution.autotuner import Autotuner
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.execution.tactics import TACTICS
from hrnet_fast.inference.execution.torch_executor import TorchExecutor
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.measure import operator_calls, peak_activations

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ONEDNN = (torch.float32, torch.bfloat16)  # whose own operators have these
# Distance to the evaluator in the same dtype: fused steps round once where it rounds between additions.
BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def executor(case: tuple[Any, Any, Tensor], tactic: str = "library", **options: Any) -> TorchExecutor:
    plan, tensors, _ = case
    return TorchExecutor(plan, tensors, "cpu", autotuner=Autotuner(CPU, plan.dtype, tactic), **options)


def assert_equals_evaluator(made: Any, case: tuple[Any, Any, Tensor]) -> None:
    plan, tensors, x = case
    expected = evaluate(plan, tensors, x)
    assert type(made) is type(expected)
    for actual, right in zip(maps(made), maps(expected), strict=True):
        assert actual.dtype == right.dtype
        assert relative_l2(actual, right) <= BOUNDS[plan.dtype]


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "dtype"),
    # Double and half precision have one set of operators, of which these heads use all.
    [(h, d) for h in ALL_HEADS for d in DTYPES if d in ONEDNN or h in ("v1", "v2p", "ocr", "higher", "c")],
)
def test_equals_the_evaluator(head: str, dtype: torch.dtype) -> None:
    case = tiny_case(head, dtype)
    for tactic in ("library", "onednn") if dtype in ONEDNN else ("library",):
        run = executor(case, tactic)
        assert_equals_evaluator(run(case[2]), case)
        assert_equals_evaluator(run(case[2]), case)  # over the last call's maps


# test_golden compares all golden networks' plans with their figures; here, two in their full widths.
@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("name", ["official_pose_w32", "mmseg_w18"])
def test_golden_networks(name: str) -> None:
    case = golden_case(name, torch.float64)
    assert_equals_evaluator(executor(case)(case[2]), case)


@pytest.mark.parametrize("batch", [0, 3])
def test_batches(batch: int) -> None:
    plan, tensors, x = case = tiny_case("v2", torch.float32, batch, 65, 97)
    for tactic in ("library", "onednn"):
        made = executor(case, tactic)(x)
        expected = evaluate(plan, tensors, x)
        assert made.shape == expected.shape
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_without_a_fast_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny_case("v2", torch.float32)
    monkeypatch.setenv("HRNET_FAST_IMPL", "reference")
    assert_equals_evaluator(executor(case)(case[2]), case)


def test_images_of_bytes() -> None:
    plan, tensors, _ = tiny_case("v1", torch.float64)
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    plan = plan.with_images((0.1, 0.2, 0.3), (-1.0, 0.0, 1.0))
    assert_equals_evaluator(executor((plan, tensors, images))(images), (plan, tensors, images))


def test_outputs_are_new() -> None:
    case = tiny_case("v2p", torch.float32)
    run = executor(case)
    first = run(case[2])
    kept = [t.clone() for t in maps(first)]
    run(case[2] * 2)
    for a, b in zip(maps(first), kept, strict=True):
        assert torch.equal(a, b)


def test_maps_have_fixed_places() -> None:
    """What has a place keeps it; only whole buffers are handed over, and none outlives its last use."""
    case = tiny_case("v2", torch.float32)
    run = executor(case, "onednn")
    offsets = run.maps.layout.offsets
    own = {k for k, offset in enumerate(offsets) if offset is None}
    assert own
    assert own <= adoptable(case[0])
    assert all(offset % 256 == 0 for offset in offsets if offset is not None)
    assert len(own) < len(offsets)
    run(case[2])
    assert all(buffer is None for buffer, offset in zip(run.maps._buffers, offsets, strict=True) if offset is None)
    assert run.maps.layout.bytes < case[0].peak_memory


def test_what_a_call_makes() -> None:
    """Few operators for each step, and at no time as much memory as the arena saves."""
    case = tiny_case("v1", torch.float64)
    run = executor(case)
    run(case[2])
    assert operator_calls(lambda: run(case[2])) <= 3 * len(case[0].steps)
    assert peak_activations(lambda: run(case[2])) < case[0].peak_memory / 2


def test_odd_surroundings() -> None:
    """Inference mode around construction, call and refresh; autocast; gradients."""
    _, tensors, x = case = tiny_case("v1", torch.float32)
    with torch.inference_mode():
        run = executor(case)
        inside = run(x.clone())
    outside = run(x.requires_grad_(True))
    x.requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(x)
    with torch.inference_mode():
        run.refresh({k: v.clone() for k, v in tensors.items()})
    assert_same(inside, outside)
    assert_same(inside, cast)
    assert_same(inside, run(x))
    assert not outside.requires_grad
    assert_equals_evaluator(inside, case)


@pytest.mark.parametrize("tactic", ["library", "onednn"])
def test_refresh_writes_into_the_same_storage(tactic: str) -> None:
    model, x = tiny("ocr"), image()
    plan = make_plan(model, tuple(x.shape), torch.float32)
    run = executor((plan, tensors_of(model), x), tactic)
    before = run(x)
    places = [(f.weight.data_ptr(), f.bias.data_ptr()) for f in run.weights._folded.values()]
    names = {k: t.data_ptr() for k, t in run._state.items()}
    enliven(model, seed=5)
    for a, b in zip(maps(run(x)), maps(before), strict=True):
        assert torch.equal(a, b)  # the model's own tensors are not what is read
    run.refresh(tensors_of(model))
    assert places == [(f.weight.data_ptr(), f.bias.data_ptr()) for f in run.weights._folded.values()]
    assert names == {k: t.data_ptr() for k, t in run._state.items()}
    assert_equals_evaluator(run(x), (plan, tensors_of(model), x))


def test_threads_take_turns() -> None:
    case = tiny_case("v1", torch.float32)
    run = executor(case)
    inputs = [image(64, 96).roll(k, 3) for k in range(6)]
    expected = [run(x) for x in inputs]
    made: list[Any] = [None] * len(inputs)

    def work(k: int) -> None:
        for _ in range(3):
            made[k] = run(inputs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a, b)


def test_another_shape_is_refused() -> None:
    case = tiny_case("v1", torch.float32)
    with pytest.raises(InputError, match=r"\[1, 3, 1, 96\] given; this plan is for \[1, 3, 64, 96\]"):
        executor(case)(case[2][:, :, :1])  # would broadcast


def test_profile_and_describe() -> None:
    case = tiny_case("v1", torch.float32)
    run = executor(case, "onednn")
    times = run.profile(case[2], rounds=2)
    assert [i for i, _ in times] == list(range(len(case[0].steps)))
    assert all(seconds > 0 for _, seconds in times)
    text = "\n".join(run.describe())
    assert "float32" in text
    assert "by onednn" in text


def test_measured_choices_are_shared_and_remembered() -> None:
    plan, tensors, x = case = tiny_case("v1", torch.float32)
    autotuner = Autotuner(CPU, torch.float32)
    run = TorchExecutor(plan, tensors, "cpu", autotuner=autotuner)
    assert_equals_evaluator(run(x), case)
    assert all(set(c.seconds) == {"onednn", "library"} for c in autotuner.results.values())
    again = TorchExecutor(plan, tensors, "cpu")
    assert all(c.from_cache for c in again.autotuner.results.values())
    assert any("from the cache" in line for line in again.describe())
    spent = TorchExecutor(plan, tensors, "cpu", autotuner=Autotuner(CPU, torch.float32, budget=0.0))
    assert any("the time for measuring was spent" in line for line in spent.describe())
    with pytest.raises(ImplementationError, match="is no tactic"):
        Autotuner(CPU, torch.float32, prefer="magic")


def test_a_tactic_that_computes_something_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tactic = TACTICS["onednn"]
    right = type(tactic).run
    monkeypatch.setattr(type(tactic), "run", lambda self, *args: right(self, *args) * 1.01)
    plan, tensors, x = case = tiny_case("v1", torch.float32)
    run = TorchExecutor(plan, tensors, "cpu")
    assert_equals_evaluator(run(x), case)
    assert all(c.winner == "library" for c in run.autotuner.results.values())
    assert all("differs" in c.reasons["onednn"] for c in run.autotuner.results.values())


@pytest.mark.parametrize("head", ["v1", "v2", "ocr", "cii"])
def test_grouped_branches(head: str, grouped: list[int]) -> None:
    case = tiny_case(head, torch.float64)
    run = executor(case, grouped=True)
    assert_equals_evaluator(run(case[2]), case)
    assert max(grouped) == 4
    assert sum(grouped) >= sum(len(group) for group in case[0].parallel_convs()) - len(case[0].parallel_convs())
    assert len(run.groups) < len(case[0].steps)
    assert sorted(i for i, _ in run.profile(case[2], rounds=1)) == list(range(len(case[0].steps)))


@pytest.mark.parametrize("tactic", ["library", "onednn"])
def test_half_precision_over_one_column(tactic: str) -> None:
    """Where the library's own convolution in bfloat16 is wrong."""
    model, x = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1)).eval(), torch.randn(1, 16, 20, 2)
    plan = make_plan(model, tuple(x.shape), torch.bfloat16)
    assert relative_l2(executor((plan, tensors_of(model), x), tactic)(x), model(x)) < 0.02
