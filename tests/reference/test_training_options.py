"""Normalisation kinds, freezing, activation checkpointing and initialisation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_networks import assert_same, enliven, gradients, image, maps, relative_l2, tiny, tiny_config, train_once
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.reference.blocks import ResidualUnit
from hrnet_fast.reference.norm import FrozenBatchNorm2d, without_stat_updates

NORM_CLASSES: dict[str, type[nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "syncbn": nn.SyncBatchNorm,
    "gn": nn.GroupNorm,
    "frozen": FrozenBatchNorm2d,
}


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, tuple(NORM_CLASSES.values()))]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {k: b.clone() for k, b in model.named_buffers()}


def run(model: hf.HRNet, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("kind", NORM_CLASSES)
@pytest.mark.parametrize("head", ["v1", "v2", "ocr", "c", "cii", "v1h"])
def test_every_norm_is_of_the_kind(kind: str, head: str) -> None:
    model = tiny(head, norm_kind=kind, norm_groups=2, norm_eps=1e-3)
    found = norms(model)
    assert len(found) == len(norms(tiny(head)))
    assert {type(m) for m in found} == {NORM_CLASSES[kind]}
    assert {m.eps for m in found} == {1e-3}
    if kind == "gn":
        assert {m.num_groups for m in found} == {2}
    assert all(torch.isfinite(m).all() for m in maps(run(model, image())))


@pytest.mark.parametrize("kind", ["bn", "syncbn"])
@pytest.mark.parametrize("momentum", [None, 0.01])
def test_momentum(kind: str, momentum: float | None) -> None:
    model = tiny(norm_kind=kind, bn_momentum=momentum)
    assert {m.momentum for m in norms(model)} == {momentum}


def test_group_norm_names_the_width_it_cannot_divide() -> None:
    with pytest.raises(hf.ConfigError, match=r"18 channels.*32 groups.*norm_groups"):
        hf.HRNet(tiny_config(width=18, stem_channels=64, stage1_channels=32, norm_kind="gn"))


def test_syncbn_alone_is_batch_norm() -> None:
    plain, sync = tiny(), tiny(norm_kind="syncbn")
    x = image()
    assert_same(run(sync, x), run(plain, x))
    for a, b in zip(train_once(sync, image(batch=2)), train_once(plain, image(batch=2)), strict=True):
        assert relative_l2(a, b) <= 1e-6


def test_frozen_norms_compute_as_in_evaluation_and_never_change() -> None:
    plain, frozen = tiny(), tiny(norm_kind="frozen")
    assert frozen.state_dict().keys() == plain.state_dict().keys()
    x = image()
    assert_same(run(frozen, x), run(plain, x))
    before = buffers(frozen)
    assert_same(run(frozen.train(), x), run(plain, x))
    train_once(frozen, x)
    assert all(torch.equal(before[k], b) for k, b in frozen.named_buffers())
    assert not any(k.endswith(("bn1.weight", "bn1.bias")) for k, _ in frozen.named_parameters())


def test_norm_layer_replaces_every_norm() -> None:
    made: list[int] = []

    def instance_norm(channels: int) -> nn.Module:
        made.append(channels)
        return nn.InstanceNorm2d(channels, affine=True)

    model = enliven(hf.HRNet(tiny_config("v2"), norm_layer=instance_norm)).eval()
    expected = [m.num_features for m in norms(tiny("v2"))]
    assert sorted(made) == sorted(expected)
    assert norms(model) == []
    assert run(model, image()).shape == (1, 3, 16, 16)


def test_norm_eval_keeps_statistics_and_trains_scales() -> None:
    model = tiny(norm_eval=True)
    x = image(batch=2)
    expected = run(model, x)
    before = buffers(model)
    model.eval().train()
    assert model.training
    assert not any(m.training for m in norms(model))
    assert_same(run(model, x), expected)
    train_once(model, x)
    assert all(torch.equal(before[k], b) for k, b in model.named_buffers())
    assert model.bn1.weight.grad.norm() > 0


FROZEN: dict[int, tuple[str, ...]] = {-1: ()}
FROZEN[0] = ("conv1.", "bn1.", "conv2.", "bn2.")
FROZEN[1] = (*FROZEN[0], "layer1.", "transition1.")
FROZEN[2] = (*FROZEN[1], "stage2.", "transition2.")
FROZEN[3] = (*FROZEN[2], "stage3.", "transition3.")
FROZEN[4] = (*FROZEN[3], "stage4.")


@pytest.mark.parametrize("stages", FROZEN)
def test_frozen_stages(stages: int) -> None:
    model = enliven(hf.HRNet(tiny_config(frozen_stages=stages)))
    before = buffers(model)
    frozen = FROZEN[stages]
    for _ in range(2):
        for key, parameter in model.named_parameters():
            assert parameter.requires_grad is not key.startswith(frozen), key
        for key, module in model.named_modules():
            if key:
                assert module.training is not f"{key}.".startswith(frozen), key
        model.eval().train()
    train_once(model, image(batch=2))
    for key, value in model.named_buffers():
        assert torch.equal(before[key], value) is key.startswith(frozen), key
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) is key.startswith(frozen), key


def test_zero_init_residual_starts_units_as_their_shortcut() -> None:
    model = hf.HRNet(tiny_config("c", zero_init_residual=True)).eval()
    units = [m for m in model.modules() if isinstance(m, ResidualUnit)]
    assert len(units) == 1 + 2 + 3 + 4 + 4
    for unit in units:
        assert (unit.last_norm().weight == 0).all()
        channels = unit.conv1.in_channels
        x = image(8, 8, channels=channels)
        with torch.no_grad():
            shortcut = x if unit.downsample is None else unit.downsample(x)
            assert torch.equal(unit(x), shortcut.relu())
    assert (model.bn1.weight == 1).all()
    assert (model.layer1[0].bn1.weight == 1).all()


CHECKPOINTED: list[dict[str, Any]] = [
    {},
    {"head": "ocr", "dropout": 0.0},
    {"head": "cii"},
    {"norm_kind": "syncbn"},
    {"norm_kind": "gn", "norm_groups": 2},
    {"bn_momentum": None},
    {"norm_eval": True},
    {"frozen_stages": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", CHECKPOINTED, ids=str)
def test_recomputation_changes_nothing(options: dict[str, Any]) -> None:
    options = {"head": "v1"} | options
    plain = enliven(hf.HRNet(tiny_config(**options), impl="reference"))
    recomputing = enliven(hf.HRNet(tiny_config(**options, gradient_checkpointing=True), impl="reference"))
    x = image(batch=2)
    for a, b in zip(train_once(recomputing, x), train_once(plain, x), strict=True):
        assert torch.equal(a, b)
    own, expected = gradients(recomputing), gradients(plain)
    assert own.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(own[key], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item(), msg=key)
    theirs = buffers(plain)
    counters = 0
    for key, value in recomputing.named_buffers():
        assert torch.equal(value, theirs[key]), key
        if key.endswith("num_batches_tracked"):
            idle = options.get("norm_eval") or key.startswith(FROZEN[options.get("frozen_stages", -1)])
            assert value.item() == (0 if idle else 1), key
            counters += 1
    assert counters > 0 or options.get("norm_kind") == "gn"


def forwards(model: hf.HRNet, part: str) -> int:
    """How often a convolution runs in one forward and backward."""
    calls: list[int] = []
    hook = model.get_submodule(part).register_forward_hook(lambda *_: calls.append(1))
    train_once(model, image(batch=2))
    hook.remove()
    return len(calls)


def test_recomputation_happens_and_can_be_switched() -> None:
    model = tiny(gradient_checkpointing=True)
    part = "stage4.0.branches.3.0.conv1"
    assert forwards(model, part) == 2
    model.set_grad_checkpointing(False)
    assert forwards(model, part) == 1
    model.set_grad_checkpointing()
    assert forwards(model, part) == 2
    assert all(m.track_running_stats for m in norms(model))


def test_recomputation_leaves_evaluation_alone() -> None:
    plain, recomputing = hf.restore(tiny()), hf.restore(tiny(gradient_checkpointing=True))
    x = image().requires_grad_()
    assert torch.equal(recomputing(x), plain(x))
    copy.deepcopy(recomputing)(x).sum().backward()
    assert x.grad is not None


def fail(norm: nn.Module) -> None:
    norm(image(4, 4, batch=2))
    raise hf.InputError("anything")


def test_statistics_are_counted_again_after_a_failure_inside() -> None:
    norm = nn.BatchNorm2d(3)
    with pytest.raises(hf.InputError), without_stat_updates(norm):
        fail(norm)
    assert norm.num_batches_tracked == 0
    norm(image(4, 4, batch=2))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("head", ["v1", "v1h", "v2", "v2p", "ocr", "face", "c", "ci", "cii", "features"])
def test_every_parameter_gets_a_gradient(head: str) -> None:
    # A bias before a normalisation has none.
    model = tiny(head, conv_bias=False).double()
    for output in train_once(model, image(128, 128, batch=2, dtype=torch.float64)):
        assert torch.isfinite(output).all()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.norm() > 0, key
