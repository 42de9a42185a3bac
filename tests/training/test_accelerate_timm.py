"""`accelerate` on timm's own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import accelerated, assert_all_fast, assert_evaluates_alike, assert_trains_alike
from tiny_networks import enliven, image

timm = pytest.importorskip("timm")


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lean", "min"])
@pytest.mark.parametrize("options", [{"num_classes": 10}, {"features_only": True}], ids=["classes", "features"])
def test_computes_what_it_did(options: dict[str, Any], memory: str) -> None:
    plain = enliven(timm.create_model("hrnet_w18_small", **options)).double()
    fast = accelerated(plain, memory=memory)
    assert assert_all_fast(fast).fast >= 12
    assert_trains_alike(fast, plain, image(64, 64, batch=2, dtype=torch.float64))
    assert_evaluates_alike(fast, plain, image(64, 96, dtype=torch.float64))
    assert_all_fast(fast)


@pytest.mark.slow
def test_stochastic_depth_falls_back() -> None:
    plain = enliven(timm.create_model("hrnet_w18_small", num_classes=10)).double()
    drop = timm.layers.DropPath(0.5)
    plain.layer1[0].drop_path = drop
    fast = accelerated(plain)
    assert "drop_path (DropPath)" in str(next(b.reason for b in _blocks(fast) if b.name == "layer1"))
    x = image(32, 32, batch=4, dtype=torch.float64)
    results = []
    for model in (plain.train(), fast.train()):
        torch.manual_seed(3)
        results.append(model(x))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def _blocks(model: Any) -> Any:
    from hrnet_fast.training import explain

    return explain(model).blocks
