"""What accelerated training keeps for backward, and how many operators it calls."""

from __future__ import annotations

import gc

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, tiny
from tiny_networks import image, maps
from torch import Tensor, nn

from hrnet_fast.measure import _Watcher, operator_calls


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of distinct storages kept for backward, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    kept = []  # alive, so that no address is used twice

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model.train()(x)
    del out
    return sum(sizes.values())


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_lean_and_minimal_memory(impl: str) -> None:
    """Four branches with two units each, as many as the smallest published networks have.

    The longer the branches, the more is saved: with the usual four units, more than here.
    """
    if impl == "cpu":
        pytest.importorskip("hrnet_fast._C", reason="the compiled extension was not built")
    plain = tiny("v1", width=8, num_blocks=2)
    x = image(128, 128, batch=2)
    whole = saved_bytes(plain, x)
    lean = saved_bytes(accelerated(plain, impl), x) / whole
    least = saved_bytes(accelerated(plain, impl, "min"), x) / whole
    assert lean < 0.62
    assert least < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lean", "min"])
def test_nothing_outlives_backward(memory: str) -> None:
    """Chains, recipes and graph nodes refer to each other; none of it waits for the garbage collector."""
    model = accelerated(tiny("v1"), memory=memory).train()
    x = image(64, 64, batch=2)
    gc.collect()
    gc.disable()
    try:
        watcher = _Watcher()
        with watcher:
            out = model(x)
            assert watcher.live > 0
            del out  # if backward never comes, letting the output go is enough
            assert watcher.live == 0
            model(x).sum().backward()
        assert watcher.live <= 1.01 * sum(p.nbytes for p in model.parameters())  # the gradients
    finally:
        gc.enable()


def four_branches() -> tuple[nn.Module, list[Tensor]]:
    module = tiny("v1", width=8, multiscale_output=True).stage4[0]
    for branch in module.branches:
        branch.requires_grad_(False)
    xs = [torch.randn(2, 8 << k, 32 >> k, 32 >> k, requires_grad=True) for k in range(4)]
    return module.train(), xs


def test_calls_of_one_fusion() -> None:
    """Forward of a fusion in training, its branches left out."""
    pytest.importorskip("hrnet_fast._C", reason="the compiled extension was not built")
    plain, xs = four_branches()
    fast = accelerated(nn.Sequential(plain), "cpu")[0]
    for module in (plain, fast):
        module.branches = nn.ModuleList(nn.Identity() for _ in xs)
    assert operator_calls(lambda: plain(list(xs))) >= 58
    assert operator_calls(lambda: fast(list(xs))) <= 30


@pytest.mark.slow
def test_calls_of_a_step_of_training() -> None:
    pytest.importorskip("hrnet_fast._C", reason="the compiled extension was not built")
    # Contiguous maps are laid out anew for chains on a CPU, which counts too.
    plain = up.net(dtype=torch.float32).train().to(memory_format=torch.channels_last)
    fast = accelerated(plain, "cpu")
    x = image(64, 64, batch=2).to(memory_format=torch.channels_last)
    counts = [operator_calls(lambda m=m: sum(o.sum() for o in maps(m(x))).backward()) for m in (plain, fast)]  # type: ignore[misc,union-attr]
    assert counts[1] < counts[0], counts
