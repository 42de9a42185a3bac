"""`accelerate` on networks that are built as the authors' repositories build theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_all_fast, assert_evaluates_alike, assert_trains_alike
from tiny_networks import image
from torch import nn

from hrnet_fast.training.fused_fusion import FusedModularizedBlock

NETS: dict[str, dict[str, Any]] = {
    "authors_pose": {"module": up.HighResolutionModule, "multi_scale_output": False},
    "authors_segmentation": {"module": up.SegmentationModule},
    "authors_ocr": {"module": up.AlignedModule},
}
FOUND = {
    "authors_pose": ("nearest", False, True),
    "authors_segmentation": ("bilinear", False, False),
    "authors_ocr": ("bilinear", True, False),
}
INTERPOLATES = ("authors_segmentation", "authors_ocr")


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["lean", "min"])
@pytest.mark.parametrize("name", NETS)
def test_computes_what_it_did(name: str, memory: str) -> None:
    plain = up.net(**NETS[name])
    fast = accelerated(plain, memory=memory)
    settings = {m.fused_settings for m in fast.modules() if isinstance(m, FusedModularizedBlock)}
    assert {(s.mode, s.align_corners, s.exact_scale) for s in settings} == {FOUND[name]}
    assert_evaluates_alike(fast, plain, image(64, 96, dtype=torch.float64))
    assert_trains_alike(fast, plain, image(32, 64, batch=2, dtype=torch.float64))
    assert_all_fast(fast)


@pytest.mark.parametrize("name", INTERPOLATES)
def test_odd_sizes(name: str) -> None:
    plain = up.net(**NETS[name])
    fast = accelerated(plain)
    x = image(66, 97, batch=2, dtype=torch.float64)
    assert_trains_alike(fast, plain, x)
    assert_evaluates_alike(fast, plain, x)
    assert_all_fast(fast)


def test_sizes_that_do_not_fit_raise_the_networks_own_error() -> None:
    plain = up.net(**NETS["authors_pose"]).eval()
    x = image(66, 97, dtype=torch.float64)
    with pytest.raises(RuntimeError) as own:
        plain(x)
    with pytest.raises(RuntimeError) as given:
        accelerated(plain)(x)
    assert str(given.value) == str(own.value)


@pytest.mark.parametrize("module", [up.SegmentationModule, up.HighResolutionModule])
def test_branches_of_foreign_sizes_raise_as_before(module: Any) -> None:
    """A strided map that misses its target is an error, and is not interpolated."""
    plain = up.net(module=module).eval().stage2[0]
    xs = [torch.randn(1, c, s, s, dtype=torch.float64) for c, s in zip(up.CHANNELS, (16, 9, 4), strict=True)]
    fast = accelerated(nn.Sequential(plain))[0]
    for model in (plain, fast):
        with pytest.raises(RuntimeError):
            model(list(xs))
    assert "does not fit" in fast.last_call_reason


def test_synchronised_normalisation_without_processes() -> None:
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(up.net(**NETS["authors_segmentation"]))
    fast = accelerated(plain)
    assert_trains_alike(fast, plain, image(32, 64, batch=2, dtype=torch.float64))
    assert_all_fast(fast)


def test_given_list_stays_as_it_was() -> None:
    """The authors' forward writes into it; callers that rely on that exist nowhere, and skip connections do."""
    fast = accelerated(up.net()).stage2[0]
    xs = [torch.randn(1, c, 16 >> k, 16 >> k, dtype=torch.float64) for k, c in enumerate(up.CHANNELS)]
    given = list(xs)
    fast(given)
    assert all(a is b for a, b in zip(given, xs, strict=True))
