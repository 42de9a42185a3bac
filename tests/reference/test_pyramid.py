"""mmdetection's necks: FCOS's stride of 2, normalised necks, maximum pooling; loaded and in engines."""

from __future__ import annotations

import pickle
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import FOLDER, fill
from golden_data import image as golden_image
from tiny_networks import image, maps, relative_l2, tiny
from torch import Tensor
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.skip_init import meta_device

CENTERNESS = "bbox_head.conv_centerness.weight"
NORMS: dict[str, Any] = {"gn": hf.NormConfig("gn", groups=4), "bn": hf.NormConfig("bn")}


def mmdet_state(model: hf.HRNet) -> dict[str, Tensor]:
    return hf.FAMILIES["mmdet"].from_canonical(model.state_dict())


def fingerprint(tensor: Tensor) -> np.ndarray:
    """Mean, deviation and the values at 64 places drawn from the shape's name, as the stored ones were made."""
    flat = tensor.numpy().reshape(-1)
    draw = np.random.default_rng(zlib.crc32(("probe" + repr(tuple(tensor.shape))).encode()))
    return np.concatenate([[flat.mean(), flat.std()], flat[draw.integers(0, flat.size, 64)]])


@pytest.mark.no_cover
@pytest.mark.slow
def test_fcos_of_mmdetection() -> None:
    """What mmdetection 3.3.0 itself computed in float64 from fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py."""
    with meta_device():
        shapes = {k: tuple(v.shape) for k, v in mmdet_state(hf.HRNet(width=18, head="v2p")).items()}
    state = {key: fill(key, shape) for key, shape in shapes.items()} | {CENTERNESS: torch.zeros(1, 256, 3, 3)}
    model = hf.load_checkpoint(state, impl="reference").double()
    assert model.family == "mmdet"
    assert any("pyramid_stride=2" in note for note in model.notes)
    x = F.pad(golden_image((1, 3, 180, 240)), (0, 16, 0, 12)).double()
    with torch.no_grad():
        levels = model(x)
    assert [tuple(level.shape[-2:]) for level in levels] == [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    with np.load(FOLDER / "fcos_pyramid_w18.npz") as stored:
        for i, level in enumerate(levels):
            expected = stored[f"pyramid_{i}"]
            assert np.abs(fingerprint(level) - expected).max() <= 1e-10 * np.abs(expected).max()


def test_stride_without_a_sign_and_by_hand() -> None:
    state = mmdet_state(tiny("v2p"))
    assert hf.load_checkpoint(state).config.head.pyramid_stride == 1
    assert hf.load_checkpoint(state, pyramid_stride=2).config.head.pyramid_stride == 2
    state[CENTERNESS] = torch.zeros(1, 16, 3, 3)
    assert hf.load_checkpoint(state).config.head.pyramid_stride == 2
    assert hf.load_checkpoint(state, pyramid_stride=1).config.head.pyramid_stride == 1


@pytest.mark.parametrize("kind", NORMS)
def test_a_normalised_neck_from_a_checkpoint(kind: str) -> None:
    model = tiny("v2p", pyramid_norm=NORMS[kind], pyramid_stride=2)
    state = mmdet_state(model)
    neck = {key for key in state if key.startswith("neck.fpn_convs.0.")}
    assert f"neck.fpn_convs.0.{kind}.weight" in neck
    assert "neck.fpn_convs.0.conv.bias" not in neck
    loaded = hf.load_checkpoint(state, pyramid_stride=2, pyramid_norm=NORMS[kind])
    x = image(128, 128)
    with torch.no_grad():
        for a, e in zip(loaded(x), model(x), strict=True):
            assert torch.equal(a, e)


def test_batch_normalisation_of_a_neck_is_inferred_from_its_keys() -> None:
    state = mmdet_state(tiny("v2p", pyramid_norm=NORMS["bn"]))
    assert hf.load_checkpoint(state).config.head.pyramid_norm == hf.NormConfig("bn")


def test_groups_of_a_neck_cannot_be_inferred() -> None:
    state = mmdet_state(tiny("v2p", channels=32, pyramid_norm=hf.NormConfig("gn", groups=4)))
    loaded = hf.load_checkpoint(state)
    assert loaded.config.norm.kind == "bn"
    assert loaded.config.head.pyramid_norm == hf.NormConfig("gn")
    assert any("32 groups" in note for note in loaded.notes)


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", [None, *NORMS.values()])
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_levels_by_hand_and_in_an_engine(stride: int, norm: Any, pool: Any) -> None:
    model = tiny("v2p", pyramid_stride=stride, pyramid_norm=norm, pyramid_pool=pool)
    x = image(64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        sizes = [
            features[0],
            *(F.interpolate(f, scale_factor=2**i, mode="bilinear") for i, f in enumerate(features) if i),
        ]
        y = model.neck.reduction_conv(torch.cat(sizes, 1))
        pooling = F.max_pool2d if pool == "max" else F.avg_pool2d
        pooled = [y, *(pooling(y, 2**k, 2**k) for k in range(1, 5))]
        expected = [conv(p) for conv, p in zip(model.neck.fpn_convs, pooled, strict=True)]
        levels = model(x)
    assert type(levels) is tuple
    copied = pickle.loads(pickle.dumps(model))
    assert all(torch.equal(a, b) for a, b in zip(copied(x), levels, strict=True))
    assert [conv.conv.stride for conv in model.neck.fpn_convs] == [(stride, stride)] * 5
    engine = hf.optimize_for_inference(model, x)
    for level, planned, e in zip(levels, maps(engine(x)), expected, strict=True):
        torch.testing.assert_close(level, e, rtol=1e-5, atol=1e-6)
        assert relative_l2(planned, level) <= 1e-5


def test_norm_eval_is_the_trunks() -> None:
    """mmdetection's backbone freezes its own statistics; a neck goes on learning."""
    model = tiny("v2p", pyramid_norm=hf.NormConfig("bn"), norm_eval=True).train()
    assert not model.bn1.training
    assert model.neck.reduction_conv.bn.training
