"""`accelerate` on networks that are built as the upstream code bases build theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import upstream_standins as up
from comparison import accelerated, assert_all_fast, assert_evaluates_alike, assert_trains_alike, reasons
from tiny_networks import image
from torch import nn

from hrnet_fast.training.fused_fusion import FusedModularizedBlock

NETS: dict[str, dict[str, Any]] = {
    "authors_pose": {"module": up.HighResolutionModule, "multi_scale_output": False},
    "authors_segmentation": {"module": up.SegmentationModule},
    "authors_ocr": {"module": up.AlignedModule},
    "mmpose": {"module": up.MMPoseModule, "block": up.MMBasicBlock},
    "mmseg": {"module": up.MMSegModule, "block": up.MMBasicBlock},
    "mmdet": {"module": up.MMPoseModule, "block": up.MMBasicBlock, "frozen_stages": 1, "norm_eval": True},
}
FOUND = {
    "authors_pose": ("nearest", False, True),
    "authors_segmentation": ("bilinear", False, False),
    "authors_ocr": ("bilinear", True, False),
    "mmpose": ("nearest", False, True),
    "mmseg": ("bilinear", False, True),
    "mmdet": ("nearest", False, True),
}
INTERPOLATES = ("authors_segmentation", "authors_ocr", "mmseg")


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
    """mmseg's two steps of interpolation are not one, so its own forward runs there."""
    plain = up.net(**NETS[name])
    fast = accelerated(plain)
    x = image(66, 97, batch=2, dtype=torch.float64)
    assert_trains_alike(fast, plain, x)
    assert_evaluates_alike(fast, plain, x)
    if name == "mmseg":
        assert all("does not fit" in reason for reason in reasons(fast).values())
        assert set(reasons(fast)) == {"stage2.0", "stage2.1"}
    else:
        assert_all_fast(fast)


@pytest.mark.parametrize("name", ["authors_pose", "mmpose"])
def test_sizes_that_do_not_fit_raise_the_networks_own_error(name: str) -> None:
    plain = up.net(**NETS[name]).eval()
    x = image(66, 97, dtype=torch.float64)
    with pytest.raises(RuntimeError) as own:
        plain(x)
    with pytest.raises(RuntimeError) as given:
        accelerated(plain)(x)
    assert str(given.value) == str(own.value)


@pytest.mark.parametrize("module", [up.SegmentationModule, up.MMPoseModule])
def test_branches_of_foreign_sizes_raise_as_before(module: Any) -> None:
    """A strided map that misses its target is an error, and is not interpolated."""
    plain = up.net(module=module).eval().stage2[0]
    xs = [torch.randn(1, c, s, s, dtype=torch.float64) for c, s in zip(up.CHANNELS, (16, 9, 4), strict=True)]
    fast = accelerated(nn.Sequential(plain))[0]
    for model in (plain, fast):
        with pytest.raises(RuntimeError):
            model(list(xs))
    assert "does not fit" in fast.last_call_reason


@pytest.mark.parametrize("name", ["authors_segmentation", "mmseg"])
def test_synchronised_normalisation_without_processes(name: str) -> None:
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(up.net(**NETS[name]))
    fast = accelerated(plain)
    assert_trains_alike(fast, plain, image(32, 64, batch=2, dtype=torch.float64))
    assert_all_fast(fast)


def test_frozen_parts_and_norms_of_mmdetection() -> None:
    plain = up.net(**NETS["mmdet"]).eval()
    fast = accelerated(plain)
    fast.train()
    frozen = [p for name, p in fast.named_parameters() if name.startswith(("conv1", "bn1", "layer1"))]
    assert frozen
    assert not any(p.requires_grad for p in frozen)
    assert not any(m.training for m in fast.modules() if isinstance(m, nn.BatchNorm2d))
    sum(o.sum() for o in fast(image(32, 32, dtype=torch.float64))).backward()
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for p in fast.stage2.parameters())
    assert_all_fast(fast)


def test_given_list_stays_as_it_was() -> None:
    """The authors' forward writes into it; callers that rely on that exist nowhere, and skip connections do."""
    fast = accelerated(up.net()).stage2[0]
    xs = [torch.randn(1, c, 16 >> k, 16 >> k, dtype=torch.float64) for k, c in enumerate(up.CHANNELS)]
    given = list(xs)
    fast(given)
    assert all(a is b for a, b in zip(given, xs, strict=True))
