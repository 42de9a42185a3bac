"""timm's models against this package: state_dicts in both directions, outputs, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import enliven, gradients, image, maps, relative_l2, train_once
from torch import Tensor

import hrnet_fast as hf
from hrnet_fast.skip_init import meta_device

timm = pytest.importorskip("timm")

# Both sides run the same convolutions in the same order; what may differ is how a mean over pixels is summed.
SAME = 1e-12

# Of each kind of layers one is trained; deeper trunks and other widths of the last layer repeat those.
CLASSIFIERS: list[tuple[str, dict[str, Any], bool]] = [
    ("hrnet_w18_small", {}, True),
    ("hrnet_w18_small_v2", {}, False),
    ("hrnet_w18", {}, False),
    ("hrnet_w18_ssld", {}, True),
    ("hrnet_w18_small", {"in_chans": 4}, True),
    ("hrnet_w18_small", {"num_classes": 10}, False),
    ("hrnet_w18_small", {"num_classes": 0}, False),
]
OUT_INDICES: list[tuple[int, ...]] = [(0, 1, 2, 3, 4), (1, 3), (0, 4)]


NAMED = {f"hrnet_w{w}": f"hrnet_w{w}_c" for w in (18, 30, 32, 40, 44, 48, 64)}
NAMED |= {name: name for name in ("hrnet_w18_small", "hrnet_w18_small_v2", "hrnet_w18_ssld", "hrnet_w48_ssld")}


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours"), NAMED.items())
def test_named_networks_have_timms_layers(theirs: str, ours: str) -> None:
    with meta_device():
        expected, own = timm.create_model(theirs).state_dict(), hf.create_model(ours).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in expected.items()}


def timm_model(name: str, **options: Any) -> Any:
    model = enliven(timm.create_model(name, **options)).double()
    for key, buffer in model.named_buffers():
        if key.endswith("num_batches_tracked"):
            buffer.fill_(3)
    return model.eval()


def features_model(out_indices: tuple[int, ...]) -> Any:
    return timm_model("hrnet_w18", features_only=True, out_indices=out_indices)


def outputs(model: torch.nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


def assert_evaluate_alike(ours: hf.HRNet, theirs: Any, channels: int = 3) -> None:
    x = image(64, 96, channels=channels, dtype=torch.float64)
    own, expected = outputs(ours, x), outputs(theirs, x)
    assert type(own) is type(expected)
    for a, e in zip(maps(own), maps(expected), strict=True):
        assert relative_l2(a, e) <= SAME


def assert_train_alike(ours: hf.HRNet, theirs: Any, channels: int = 3, idle: tuple[str, ...] = ()) -> None:
    """Outputs, gradients and running statistics but for those of modules in `idle`."""
    x = image(64, 64, batch=2, channels=channels, dtype=torch.float64)
    for a, e in zip(train_once(ours, x), train_once(theirs, x), strict=True):
        assert relative_l2(a, e) <= SAME
    mine, others = gradients(ours), gradients(theirs)
    assert mine.keys() == others.keys()
    # Biases before a normalisation have no gradient but for rounding, on the scale of the largest gradients.
    floor = 1e-12 * max(g.norm().item() for g in others.values())
    for key, gradient in others.items():
        assert (mine[key] - gradient).norm().item() <= 1e-9 * gradient.norm().item() + floor, key
    state = theirs.state_dict()
    for key, value in ours.state_dict().items():
        if not key.startswith(idle):
            torch.testing.assert_close(value, state[key], rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "trained"), CLASSIFIERS)
def test_classifier_loads_and_computes_the_same(name: str, options: dict[str, Any], trained: bool) -> None:
    theirs = timm_model(name, **options)
    ours = hf.load_checkpoint(theirs.state_dict()).double()
    assert ours.family in ("cls", "timm")
    assert ours.config.head.conv_bias is not name.endswith("ssld")
    assert_evaluate_alike(ours, theirs, options.get("in_chans", 3))
    if trained:
        assert_train_alike(ours, theirs, options.get("in_chans", 3))


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("out_indices", OUT_INDICES)
def test_features_load_and_compute_the_same(out_indices: tuple[int, ...]) -> None:
    theirs = features_model(out_indices)
    ours = hf.load_checkpoint(theirs.state_dict(), out_indices=out_indices).double()
    assert ours.family == "timm_features"
    # timm also widens the levels that nobody asked for, and counts their statistics; here they are not computed.
    idle = tuple(f"incre_modules.{level - 1}." for level in range(1, 5) if level not in out_indices)
    assert_evaluate_alike(ours, theirs)
    if out_indices != (0, 4):  # whose layers the others train
        assert_train_alike(ours, theirs, idle=idle)


@pytest.mark.no_cover
@pytest.mark.slow
def test_all_features_are_the_default() -> None:
    theirs = features_model((0, 1, 2, 3, 4))
    ours = hf.load_checkpoint(theirs.state_dict()).double()
    x = image(64, 64, dtype=torch.float64)
    assert [m.shape for m in outputs(ours, x)] == [m.shape for m in outputs(theirs, x)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hrnet_w18_small", "hrnet_w18_ssld"])
def test_our_weights_load_into_timm_strictly(name: str) -> None:
    ours = enliven(hf.create_model(name, num_outputs=7), seed=1).double().eval()
    theirs = timm_model(name, num_classes=7)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = image(64, 64, dtype=torch.float64)
    assert relative_l2(outputs(theirs, x), outputs(ours, x)) <= SAME


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "to"),
    [
        ("hrnet_w18_small", {}, "timm"),
        ("hrnet_w18_small", {"num_classes": 0}, "timm"),
        ("hrnet_w18_ssld", {}, "cls"),
        ("hrnet_w18_small", {"features_only": True}, "timm_features"),
    ],
)
def test_conversion_round_trip_is_bit_exact(name: str, options: dict[str, Any], to: str) -> None:
    theirs = timm_model(name, **options)
    source = theirs.state_dict()
    converted = hf.convert_checkpoint(source, to=to)
    assert list(converted) == list(source)
    for key, value in source.items():
        assert converted[key].dtype == value.dtype, key
        assert torch.equal(converted[key], value), key
    theirs.load_state_dict(converted, strict=True)


def test_backbone_of_timm_fills_a_pose_net() -> None:
    source = timm_model("hrnet_w18_small").state_dict()
    config = hf.get_config("hrnet_w18_small").override(head=hf.HeadConfig("v1", 17), multiscale_output=False)
    pose = hf.HRNet(config)
    head = {k: v.clone() for k, v in pose.state_dict().items() if k.startswith("final_layer.")}
    hf.load_backbone(pose, source)
    for key, value in pose.state_dict().items():
        expected = head.get(key, source.get(key))
        assert expected is not None, key
        assert torch.equal(value, expected.to(value.dtype)), key
