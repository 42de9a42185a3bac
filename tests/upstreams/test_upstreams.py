"""`accelerate`, engines, checkpoints and configurations on the models of the packages that are on the index."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import gradients, image
from torch import nn
from upstream_checks import (
    accelerated,
    blocks,
    checkpoint_difference,
    configuration_files,
    configurations,
    engine_error,
    errors,
    kept_bytes,
    training_difference,
)
from upstream_networks import TINY, UPSTREAMS, Size, outputs_of
from upstream_table import outdated
from upstream_trainers import TRAINERS

import hrnet_fast as hf
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.training.fused_fusion import FusedModularizedBlock

EXACT = 1e-10  # of float64 sums in two orders, through a network's depth
X = {"dtype": torch.float64}
OPENMMLAB = ("mmpose", "mmseg", "mmdet")
# How each package's fusions upsample: mode, align_corners, whether by powers of two only.
UPSAMPLING = {
    "mmpose": ("nearest", False, True),
    "mmseg": ("bilinear", False, True),
    "mmdet": ("nearest", False, True),
    "timm": ("nearest", False, True),
    "segmentation_models_pytorch": ("nearest", False, True),
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Models as they are built, for copies."""
    return {}


def plain_model(models: dict[str, Any], package: str) -> Any:
    if package not in models:
        models[package] = UPSTREAMS[package].build().double()
    return copy.deepcopy(models[package])


CASES = [(package, "lean") for package in UPSTREAMS] + [("mmseg", "min"), ("timm", "min")]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "memory"), CASES)
def test_computes_what_it_did(package: str, memory: str, models: dict[str, Any]) -> None:
    plain = plain_model(models, package)
    fast = accelerated(plain, memory=memory)
    x = image(64, 64, batch=2, **X)
    assert errors(fast, plain, x).largest() <= EXACT
    executed, total, reasons = blocks(fast)
    assert executed == total, reasons
    settings = [m.fused_settings for m in fast.modules() if isinstance(m, FusedModularizedBlock)]
    assert len(settings) >= 3
    assert {(s.mode, s.align_corners, s.exact_scale) for s in settings} == {UPSAMPLING[package]}


@pytest.mark.slow
def test_mmsegmentations_two_interpolations_are_one_at_multiples_only(models: dict[str, Any]) -> None:
    """At other sizes its module upsamples by the scale, and its forward then to the target's size."""
    plain = plain_model(models, "mmseg")
    fast = accelerated(plain)
    assert errors(fast, plain, image(66, 97, batch=2, **X)).largest() <= EXACT
    _, total, reasons = blocks(fast)
    assert sum(reasons.values()) == 3
    assert all("does not fit" in reason for reason in reasons)
    assert total == 17


@pytest.mark.parametrize("package", ["mmpose", "mmseg"])
def test_frozen_stages_and_normalisations_in_evaluation_mode(package: str) -> None:
    plain = UPSTREAMS[package].build(TINY, frozen_stages=1, norm_eval=True).double()
    fast = accelerated(plain)
    assert errors(fast, plain, image(64, 64, batch=2, **X)).largest() <= EXACT
    fast.train()
    assert not any(m.training for m in fast.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert not any(k.startswith(("backbone.conv", "backbone.bn", "backbone.layer1")) for k in gradients(fast))
    assert blocks(fast)[0] == blocks(fast)[1]


def checkpointing(package: str, **options: Any) -> Any:
    return UPSTREAMS[package].build(TINY, with_cp=True, norm_eval=False, **options).double()


@pytest.mark.slow
@pytest.mark.parametrize("package", OPENMMLAB)
def test_units_that_checkpoint_keep_their_forward_or_are_taken_over(package: str) -> None:
    plain, whole = checkpointing(package), UPSTREAMS[package].build(TINY, norm_eval=False).double()
    kept, replaced = accelerated(plain), accelerated(plain, checkpointing="replace")
    executed, total, reasons = blocks(kept)
    assert executed < total
    assert all("with_cp is set" in reason and "checkpointing='replace'" in reason for reason in reasons)
    assert blocks(replaced)[0] == blocks(replaced)[1] == 17
    x = image(64, 64, batch=2, **X)
    assert errors(replaced, whole, x).largest() <= EXACT
    # The package's own checkpoints move running statistics twice a step.
    sum(o.sum() for o in outputs_of(plain.train(), x)).backward()
    assert plain.backbone.stage4[0].branches[0][0].bn1.num_batches_tracked == 2
    assert replaced.backbone.stage4[0].branches[0][0].bn1.num_batches_tracked == 1
    assert all(m.with_cp for m in hf.restore(replaced).modules() if hasattr(m, "conv1") and hasattr(m, "with_cp"))
    assert blocks(accelerated(replaced))[0] == executed


@pytest.mark.slow
@pytest.mark.parametrize("package", OPENMMLAB)
def test_replaced_checkpoints_keep_no_more(package: str) -> None:
    """Bytes that are alive between forward and backward, with two units in a row, which keep one input."""
    model = UPSTREAMS[package].build(Size(8, blocks=2), with_cp=True, norm_eval=False)
    x = image(128, 128, batch=2)
    models = (model, accelerated(model), accelerated(model, checkpointing="replace", memory="fast"))
    alive = [kept_bytes(one, x) for one in models]
    assert alive[2] < alive[0], alive
    assert alive[2] < alive[1], alive


@pytest.mark.slow
@pytest.mark.parametrize("package", ["timm", "segmentation_models_pytorch"])
def test_frozen_normalisations(package: str, models: dict[str, Any]) -> None:
    """timm's function puts torchvision's FrozenBatchNorm2d in place of each BatchNorm2d."""
    from timm.layers import freeze_batch_norm_2d

    plain = freeze_batch_norm_2d(plain_model(models, package))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    fast = accelerated(plain)
    x = image(64, 64, batch=2, **X)
    assert errors(fast, plain, x).largest() <= EXACT
    executed, total, reasons = blocks(fast)
    assert executed == total, reasons
    single = plain.float().eval()
    assert engine_error(UPSTREAMS[package], single, x.float()) < 1e-5
    backbone = single.get_submodule(UPSTREAMS[package].backbone)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in backbone.modules())
    assert len(make_plan(backbone, tuple(x.shape), torch.float32).steps) < 1.5 * convolutions
    if package == "timm":
        fast.float()
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            a, e = fast(x.float()), plain(x.float())
        assert a.dtype == e.dtype
        assert torch.equal(a, e)
        assert "float32" in str(blocks(fast)[2])


@pytest.mark.slow
@pytest.mark.parametrize("package", UPSTREAMS)
def test_engines(package: str) -> None:
    model = UPSTREAMS[package].build()
    for one in (model, accelerated(model)):
        assert engine_error(UPSTREAMS[package], one, image(64, 64)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("package", UPSTREAMS)
def test_trains_in_its_own_trainer_and_its_file_loads(package: str, tmp_path: Path) -> None:
    difference = training_difference(UPSTREAMS[package], tmp_path)
    assert difference.losses <= EXACT
    assert difference.weights <= EXACT
    assert checkpoint_difference(UPSTREAMS[package], tmp_path / "fast" / TRAINERS[package][2]) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("package", OPENMMLAB)
def test_configurations(package: str) -> None:
    """Of the files that the package installs with itself, each seventh; docs/upstreams.md counts all."""
    found = configurations(configuration_files(package)[::7])
    assert found.found >= 4
    assert found.backbones == found.loaded == found.found, found.reasons


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_committed_page_counts_the_blocks_of_these_packages() -> None:
    assert outdated() == [], "run: python scripts/upstream_table.py"
