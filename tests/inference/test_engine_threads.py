"""Engines among callers: shapes in turn, threads, new weights, what explain and profile say."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tiny_networks import enliven, image, maps, relative_l2, tiny, tiny_config, two_stages
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.errors import InputError
from hrnet_fast.inference.execution import cpu_executor

native = pytest.mark.skipif(not cpu_executor.available(), reason="the compiled extension is not there")
# What refreshes and aliases has executors of its own: the program's, and the interpreter's.
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=native), torch.float64], ids=str
)
SIZES = [(32, 32), (64, 64), (32, 64), (64, 96), (96, 32)]


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


def close(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    return relative_l2(a, b) < (0.05 if dtype == torch.bfloat16 else 1e-5)


def other_weights(model: nn.Module) -> dict[str, Tensor]:
    """A state_dict that gives other answers."""
    return enliven(hf.HRNet(model.config), seed=1).state_dict()  # type: ignore[arg-type, no-any-return]


def in_threads(calls: list[Any]) -> None:
    """Run all at once; the first exception of any is raised."""
    raised: list[BaseException] = []

    def guarded(call: Any) -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    if raised:
        raise raised[0]


@pytest.mark.slow
@DTYPES
def test_shapes_in_turn(dtype: torch.dtype) -> None:
    model = tiny("v1")
    engine = hf.optimize_for_inference(model, image(64, 64), dtype=dtype, max_shapes=2)
    for _ in range(2):
        for size in SIZES:
            x = image(*size)
            assert close(engine(x), answer(model, x), dtype)
            assert engine.explain().count("steps in") == min(2, engine.explain().count("["))
            assert str([1, 3, *size]) in engine.explain()
    assert len(engine._executors) == 2
    assert engine.plan((1, 3, 128, 64)).input_shape == (1, 3, 128, 64)
    assert len(engine._executors) == 2  # to look at a plan prepares nothing


def test_the_shape_unused_for_longest_goes() -> None:
    engine = hf.optimize_for_inference(tiny(), image(64, 64), max_shapes=2)
    engine(image(32, 32))
    engine(image(64, 64))
    engine(image(96, 32))
    assert [shape[2:] for shape in engine._executors] == [(64, 64), (96, 32)]
    engine.prepare((2, 3, 32, 32))
    assert str([2, 3, 32, 32]) in engine.explain()


@pytest.mark.no_cover
@pytest.mark.slow
@DTYPES
def test_threads_at_once(dtype: torch.dtype) -> None:
    model = two_stages("c")
    engine = hf.optimize_for_inference(model, image(64, 64), dtype=dtype, max_shapes=1)
    xs = [image(64, 64), image(64, 64).flip(3), image(32, 64)]
    wanted = [engine(x) for x in xs]

    def call(k: int) -> None:
        for _ in range(5):
            assert torch.equal(engine(xs[k]), wanted[k])

    in_threads([lambda k=k: call(k) for k in (0, 1, 2, 0)])  # type: ignore[misc]


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize(("head", "way"), [("v1", "in place"), ("c", "load_state_dict")])
def test_refresh(head: str, way: str, dtype: torch.dtype) -> None:
    model = two_stages(head).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = image(64, 64)
    y = x.to(next(model.parameters()).dtype)
    engine = hf.optimize_for_inference(model, x, dtype=dtype, refresh="never")
    engine.prepare((2, 3, 64, 64))
    before = engine(x)
    if way == "in place":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    else:
        model.load_state_dict(other_weights(model))
    assert torch.equal(engine(x), before)
    with pytest.raises(InputError, match="refresh"):
        engine(image(32, 32))
    with pytest.raises(InputError, match="refresh"):
        engine.folded()
    assert torch.equal(engine(x), before)
    engine.refresh()
    assert not close(engine(x), before, dtype)
    assert close(engine(x), answer(model, y), dtype)
    assert close(engine(torch.cat([x, x])), answer(model, torch.cat([y, y])), dtype)
    assert close(engine(image(32, 32)), answer(model, image(32, 32).to(y)), dtype)


def test_refresh_with_another_network() -> None:
    model, x = tiny("v1"), image(64, 64)
    engine = hf.optimize_for_inference(model, x, refresh="never")
    before = engine(x)
    model.conv1 = nn.Conv2d(3, 9, 3, 2, 1, bias=False)
    with pytest.raises(InputError, match=r"conv1\.weight"):
        engine.refresh()
    assert torch.equal(engine(x), before)


@pytest.mark.slow
@DTYPES
def test_refresh_that_fails_halfway(dtype: torch.dtype) -> None:
    model, x = tiny("v1"), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype, refresh="never")
    before = engine(x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    final = model.final_layer
    final.weight = nn.Parameter(final.weight.detach().to("meta"))
    with pytest.raises(InputError, match=r"final_layer\.weight has no data"):
        engine.refresh()
    assert torch.equal(engine(x), before)
    with pytest.raises(InputError, match="refresh"):  # the model's weights are not what answers are made of
        engine(image(32, 32))


@DTYPES
@pytest.mark.parametrize("way", ["data", "assign"])
def test_changes_that_have_no_version(dtype: torch.dtype, way: str, tmp_path: Any) -> None:
    """New shapes and files would be of other weights than answers are."""
    model, x = tiny("v1"), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype)
    if way == "data":
        model.conv1.weight.data.mul_(1.5)
    else:
        model.load_state_dict(other_weights(model), assign=True)
    with pytest.raises(InputError, match="refresh"):
        engine(image(32, 32))
    with pytest.raises(InputError, match="refresh"):
        engine.save(tmp_path / "engine.pt")
    assert not list(tmp_path.iterdir())
    engine.refresh()
    assert close(engine(image(32, 32)), answer(model, image(32, 32)), dtype)


@pytest.mark.no_cover
@pytest.mark.slow
def test_planning_leaves_the_model_alone() -> None:
    """Others may answer with it, or load weights, while shapes are prepared."""
    model, x = tiny("v1"), image(64, 64)
    wanted, stop, failures = answer(model, x), threading.Event(), []

    def answers() -> None:
        while not stop.is_set():
            if not torch.equal(answer(model, x), wanted):
                failures.append("another answer")

    def plans() -> None:
        try:
            for width in range(32, 32 + 32 * 8, 32):
                hf.optimize_for_inference(model, image(32, width), verify=False)
        finally:
            stop.set()

    in_threads([answers, plans])
    assert not failures


@DTYPES
def test_whatever_the_default_device(dtype: torch.dtype) -> None:
    model, x = tiny("v1"), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype)
    wanted = engine(x)
    for shape in ((1, 3, 64, 64), (2, 3, 64, 64)):
        with torch.device("meta"):
            given = engine(x.expand(shape))
        assert given.device.type == "cpu"
        assert close(given[:1], wanted, dtype)
    assert torch.equal(engine(x), wanted)


@DTYPES
def test_inputs_negated_by_a_view(dtype: torch.dtype) -> None:
    model, x = tiny("v1"), image(64, 64)
    engine = hf.optimize_for_inference(model, x, dtype=dtype)
    lazily = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert lazily.is_neg()
    assert torch.equal(engine(lazily), engine(x))


@pytest.mark.no_cover
@pytest.mark.slow
@DTYPES
def test_refresh_among_callers(dtype: torch.dtype) -> None:
    """Every answer is of the old weights or of the new ones, of no mixture."""
    model, x = tiny("v1"), image(64, 64)
    states = [{k: v.clone() for k, v in s.items()} for s in (model.state_dict(), other_weights(model))]
    engine = hf.optimize_for_inference(model, x, dtype=dtype, refresh="never")
    wanted = []
    for state in states[::-1]:
        model.load_state_dict(state)
        engine.refresh()
        wanted.append(engine(x))
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            given = engine(x)
            assert any(torch.equal(given, one) for one in wanted)

    def renew() -> None:
        try:
            for k in range(8):
                model.load_state_dict(states[k % 2])
                engine.refresh()
        finally:
            done.set()

    in_threads([call, call, renew])


@pytest.mark.slow
@DTYPES
def test_answers_are_the_callers(dtype: torch.dtype) -> None:
    for head in ("c", "v2p"):
        model, x = two_stages(head), image(64, 64)
        engine = hf.optimize_for_inference(model, x, dtype=dtype)
        kept = maps(engine(x))
        copies = [t.clone() for t in kept]
        engine(x.flip(3))
        for t in kept:
            t.add_(1.0)
        again = maps(engine(x))
        assert all(torch.equal(a, b) for a, b in zip(again, copies, strict=True))
        assert all(torch.equal(a, b + 1.0) for a, b in zip(kept, copies, strict=True))
        storages = {t.untyped_storage().data_ptr() for t in (*kept, *again)}
        assert len(storages) == 2 * len(kept)
        assert not any(t.requires_grad for t in again)


def test_no_new_shape_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = hf.optimize_for_inference(two_stages(), image(64, 64))
    monkeypatch.setattr(engine._factory, "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(InputError, match="a CUDA graph is captured"):
        engine(image(32, 64))
    assert list(engine._executors) == [(1, 3, 64, 64)]


@pytest.mark.slow
@native
def test_shapes_share_memory() -> None:
    """As many arenas as calls at once, not as many as shapes; a larger one takes the smaller one's place."""
    engine = hf.optimize_for_inference(tiny("v1"), image(32, 32))
    for size in (*SIZES, *SIZES):
        engine(image(*size))
    spare = engine._factory._packed.arenas._spare  # type: ignore[union-attr]
    most = max(engine.memory((1, 3, *size)) for size in SIZES)
    assert [most <= arena.numel() <= most + 64 for arena in spare] == [True]


def test_explain() -> None:
    engine = hf.optimize_for_inference(two_stages(), image(64, 64))
    engine(image(32, 64))
    said = engine.explain()
    assert said == hf.explain(engine)
    assert said.startswith("float32 on cpu\n")
    for shape in ((1, 3, 64, 64), (1, 3, 32, 64)):
        assert f"{list(shape)}: {engine.plan(shape).launches()} steps in" in said
    assert "C++" in said or not cpu_executor.available()


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("head", ["v1", "c"])
@pytest.mark.usefixtures("_known_ceilings")
def test_profile(head: str, dtype: torch.dtype) -> None:
    engine = hf.optimize_for_inference(two_stages(head), image(64, 64), dtype=dtype)
    plan, told = engine.plan(), engine.profile(image(64, 64), rounds=2)
    assert sorted(row.step for row in told.steps) == list(range(len(plan.steps)))
    assert all(row.what == plan.describe(plan.steps[row.step]) for row in told.steps)
    assert all(row.seconds > 0 for row in told.steps)
    assert told.seconds > 0
    lines = str(told).splitlines()
    assert len(lines) == 2 + len(plan.steps)
    assert sorted(line.split("%  ")[1] for line in lines[2:]) == sorted(row.what for row in told.steps)
    with pytest.raises(InputError, match="rounds"):
        engine.profile(image(64, 64), rounds=0)


@pytest.mark.slow
def test_ceilings() -> None:
    from hrnet_fast.inference.profile import ceilings

    top = ceilings(torch.device("cpu"), torch.float32)
    assert top.bytes_per_second > 1e8
    assert top.flops_per_second > 1e8


def test_a_network_of_one_branch_less() -> None:
    model = enliven(hf.HRNet(tiny_config("features"))).eval()
    x = image(32, 32)
    engine = hf.optimize_for_inference(model, x)
    for a, b in zip(engine(x), answer(model, x), strict=True):
        assert close(a, b)
