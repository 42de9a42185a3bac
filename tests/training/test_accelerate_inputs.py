"""Accelerated networks on unusual inputs, with unusual statistics, and under compilers: as the plain ones do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import (
    accelerated,
    assert_all_fast,
    assert_evaluates_alike,
    assert_trains_alike,
    reasons,
    statistics,
    tiny,
    two_stages,
)
from tiny_networks import assert_same, enliven, image, maps, relative_l2
from torch import Tensor, fx, nn

import hrnet_fast as hf
from hrnet_fast.skip_init import meta_device
from hrnet_fast.training import accelerate, explain

X = {"dtype": torch.float64}
COMPILED = "under torch.compile, torch.export and tracing the plain modules run"


def each_norm(model: nn.Module, apply: Callable[[nn.BatchNorm2d], None]) -> nn.Module:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            apply(m)
    return model


def _cumulative(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None


def _untracked(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def _tracking_switched_off(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False


def _without_affine(norm: nn.BatchNorm2d) -> None:
    norm.weight = norm.bias = None  # type: ignore[assignment]


def _without_counter(norm: nn.BatchNorm2d) -> None:
    norm.num_batches_tracked = None


def _shift_only(norm: nn.BatchNorm2d) -> None:
    norm.eps, norm.momentum = 1e-2, 0.7


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lean", "min"])
@pytest.mark.parametrize(
    "change", [_cumulative, _untracked, _tracking_switched_off, _without_affine, _without_counter, _shift_only]
)
def test_statistics_of_every_kind(change: Callable[[nn.BatchNorm2d], None], memory: str) -> None:
    plain = each_norm(tiny("v1").double(), change)
    fast = accelerated(plain, memory=memory)
    for _ in range(3):
        assert_trains_alike(fast, plain)
    assert_evaluates_alike(fast, plain, image(64, 64, **X))
    assert_all_fast(fast)


@pytest.mark.parametrize("fails_in", ["fusion", "branch"])
def test_one_value_per_channel_raises_as_torch_does(fails_in: str) -> None:
    plain = tiny("v1").double().train()
    if fails_in == "fusion":
        for branch in plain.stage4[0].branches:
            branch.eval()
    errors = []
    fast = accelerated(plain)
    for model in (plain, fast):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
            model(image(32, 32, **X))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert statistics(fast).keys() == statistics(plain).keys()


def test_an_empty_batch() -> None:
    plain = tiny("v1").double()
    fast = accelerated(plain)
    x = image(64, 64, batch=0, **X)
    assert_same(fast(x), plain(x))
    assert all("input has shape (0," in reason for reason in reasons(fast).values())


def test_sizes_that_do_not_fit_raise_the_networks_error() -> None:
    fast = accelerated(tiny("v1").double())
    with pytest.raises(hf.InputError, match="pad height and width"):
        fast(image(65, 97, **X))
    with pytest.raises(hf.InputError, match="cannot be met by upsampling"):
        fast.stage2[0]([torch.randn(1, 4, 9, 9, **X), torch.randn(1, 8, 5, 5, **X)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_odd_sizes_and_strided_views(layout: torch.memory_format) -> None:
    plain = tiny("v2").double().to(memory_format=layout)
    fast = accelerated(plain)
    x = torch.randn(2, 4, 130, 97, **X).to(memory_format=layout)[:, 1:, ::2]
    assert_trains_alike(fast, plain, x)
    assert_evaluates_alike(fast, plain, x)
    assert_all_fast(fast)


def test_meta_device() -> None:
    with meta_device():
        plain = up.Net()
    fast = accelerate(plain, impl="reference")
    out = fast.eval()(torch.empty(2, 3, 64, 64, device="meta"))
    assert [o.shape for o in out] == [(2, c, 32 >> k, 32 >> k) for k, c in enumerate(up.CHANNELS)]
    assert all("meta" in reason for reason in reasons(fast).values())
    filled = enliven(fast.to_empty(device="cpu"))
    assert isinstance(filled(image(64, 64))[0], Tensor)
    assert_all_fast(filled)


def test_accelerate_leaves_weights_statistics_modes_and_chance_alone() -> None:
    model = up.net(up.SegmentationModule).train()
    state = copy.deepcopy(model.state_dict())
    model.stage2[0].eval()
    modes = [m.training for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    chance = torch.get_rng_state()
    accelerate(model, impl="reference")
    assert torch.equal(torch.get_rng_state(), chance)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wants
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_vmap_takes_the_plain_path() -> None:
    plain = up.net().eval()
    fast = accelerated(plain)
    x = torch.randn(3, 1, 3, 32, 32, **X)
    for a, e in zip(torch.vmap(fast)(x), torch.vmap(plain)(x), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
    assert "inside a functorch transform" in str(explain(fast))


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
def test_compiled_whole() -> None:
    plain = two_stages().double()
    fast = accelerated(plain)
    x = image(32, 32, batch=2, **X)
    torch._dynamo.reset()
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for a, e in zip(maps(compiled(x)), maps(plain(x)), strict=True):
        assert relative_l2(a, e) <= 1e-12
    assert COMPILED in str(explain(fast))
    assert_trains_alike(fast, plain, x)
    assert_all_fast(fast)


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_training() -> None:
    plain = two_stages().double()
    fast = accelerated(plain)
    x = image(32, 32, batch=2, **X)
    torch._dynamo.reset()
    compiled: Any = torch.compile(fast, backend="aot_eager", fullgraph=True)
    own, other = compiled.train()(x), plain.train()(x)
    own.square().mean().backward()
    other.square().mean().backward()
    for (name, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("strict", [True, False])
def test_exported(strict: bool) -> None:
    plain = two_stages().double()
    fast = accelerated(plain)
    x = image(32, 32, batch=2, **X)
    program = torch.export.export(fast, (x,), strict=strict)
    assert relative_l2(program.module()(x), plain(x)) <= 1e-12
    assert not any("hrnet_fast" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
def test_traced() -> None:
    plain = up.net(modules=1).eval()
    fast = accelerated(plain)
    x = image(32, 32, **X)
    traced = torch.jit.trace(fast, x, check_trace=False)
    for a, e in zip(traced(x), plain(x), strict=True):
        assert relative_l2(a, e) <= 1e-12
    assert COMPILED in str(explain(fast))
    fast(x)
    assert_all_fast(fast)


def test_symbolically_traced() -> None:
    plain = up.net(modules=1).eval()
    graph = fx.symbolic_trace(accelerated(plain))
    x = image(32, 32, **X)
    for a, e in zip(graph(x), plain(x), strict=True):
        assert relative_l2(a, e) <= 1e-12
