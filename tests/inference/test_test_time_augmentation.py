"""``flip_test`` and ``multi_scale`` against their formulas written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import image, tiny
from torch import Tensor
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast.errors import InputError


def lopsided(x: Tensor) -> Tensor:
    """ArenaMaps of half the size that tell channels, left from right and images apart."""
    weights = torch.linspace(-1.0, 2.0, 4 * x.shape[1] * 9).view(4, x.shape[1], 3, 3)
    return F.conv2d(x, weights, stride=2, padding=1)


@pytest.mark.parametrize("shift", [False, True])
def test_flip(shift: bool) -> None:
    x = image(8, 12, batch=2)
    given = hf.flip_test(lopsided, x, pairs=[(1, 3)], shift=shift)
    straight, mirrored = lopsided(x), lopsided(x.flip(3))
    for k, other in enumerate((0, 3, 2, 1)):
        back = mirrored[:, other].flip(2)
        if shift:
            back = back.clone()
            back[..., 1:] = mirrored[:, other].flip(2)[..., :-1]
        torch.testing.assert_close(given[:, k], (straight[:, k] + back) / 2)


def test_flip_is_one_call() -> None:
    shapes = []

    def network(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return lopsided(x)

    hf.flip_test(network, image(8, 12, batch=2))
    assert shapes == [(4, 3, 8, 12)]


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_scales(flip: bool, align: bool) -> None:
    x = image(16, 24, batch=2)
    given = hf.multi_scale(lopsided, x, [0.5, 1.0, 1.75], flip=flip, align_corners=align, divisor=8)
    total = torch.zeros(2, 4, 16, 24)
    for size in ((8, 16), (16, 24), (32, 48)):
        scaled = F.interpolate(x, size, mode="bilinear", align_corners=align)
        logits = lopsided(scaled)
        if flip:
            logits = (logits + lopsided(scaled.flip(3)).flip(3)) / 2
        total += F.interpolate(logits, (16, 24), mode="bilinear", align_corners=align)
    torch.testing.assert_close(given, total / 3)


def test_with_an_engine() -> None:
    model, x = tiny("v1"), image(64, 64)
    engine = hf.optimize_for_inference(model, x)
    with torch.no_grad():
        torch.testing.assert_close(
            hf.flip_test(engine, x, [(0, 1)]), hf.flip_test(model, x, [(0, 1)]), rtol=1e-3, atol=1e-4
        )
        options: dict[str, Any] = {"scales": [0.5, 1.0], "divisor": 32}
        torch.testing.assert_close(
            hf.multi_scale(engine, x, **options), hf.multi_scale(model, x, **options), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("network", [lambda x: [lopsided(x)], lambda x: lopsided(x).mean((2, 3))])
def test_networks_without_maps(network: Any) -> None:
    with pytest.raises(InputError, match="one tensor"):
        hf.flip_test(network, image(8, 8))
    for flip in (False, True):
        with pytest.raises(InputError, match="one tensor"):
            hf.multi_scale(network, image(8, 8), [1.0], flip=flip)


@pytest.mark.parametrize("pairs", [[(1, 3)], [0, 3, 2, 1], torch.tensor([0, 3, 2, 1])])
@pytest.mark.parametrize(
    ("keypoints", "shift"), [("msra", True), (None, True), ("udp", False), ("face", False), ("none", False)]
)
def test_the_shift_follows_pairs_and_network(pairs: Any, keypoints: str | None, shift: bool) -> None:
    class Named:
        def __call__(self, x: Tensor) -> Tensor:
            return lopsided(x)

    network = Named()
    if keypoints:
        network.keypoints = keypoints  # type: ignore[attr-defined]
    x = image(8, 12)
    assert torch.equal(hf.flip_test(network, x, pairs), hf.flip_test(network, x, [(1, 3)], shift=shift))
    assert torch.equal(hf.flip_test(network, x), hf.flip_test(network, x, shift=False))


@pytest.mark.parametrize("keypoints", ["udp", "face", "none"])
def test_a_wrapped_network_keeps_its_convention(keypoints: str) -> None:
    model, x = tiny("v1", 4), image(64, 64)
    model.keypoints = keypoints
    pairs = [(1, 3)]
    assert torch.equal(hf.flip_test(torch.nn.DataParallel(model), x, pairs), hf.flip_test(model, x, pairs, shift=False))
    model.keypoints = "UDP"
    with pytest.raises(InputError, match="'UDP' is not one of"):
        hf.flip_test(model, x, pairs)


def test_mirrored_classes_of_segmentation_are_not_shifted() -> None:
    """As the authors' evaluation of LIP, which swaps left and right classes."""
    seg, x = hf.load_checkpoint(tiny("v2", 20).state_dict()), image(64, 64)
    pairs = [(14, 15), (16, 17), (18, 19)]
    assert torch.equal(hf.flip_test(seg, x, pairs), hf.flip_test(seg, x, pairs, shift=False))


def test_an_engine_knows_its_models_convention(tmp_path: Path) -> None:
    model, x = tiny("face"), image(64, 64)
    engine = hf.optimize_for_inference(model, torch.cat([x, x]))
    engine.save(tmp_path / "face.engine")
    assert model.keypoints == engine.keypoints == hf.Engine.load(tmp_path / "face.engine").keypoints == "face"
    assert hf.optimize_for_inference(torch.nn.Conv2d(3, 4, 3).eval(), x).keypoints is None


def test_data_sets_have_names() -> None:
    model, x = tiny("v1", num_outputs=17), image(64, 64)
    index = [0, *(i + 1 if i % 2 else i - 1 for i in range(1, 17))]
    with torch.no_grad():
        assert torch.equal(hf.flip_test(model, x, "coco"), hf.flip_test(model, x, index, shift=True))
        with pytest.raises(InputError, match="98 keypoints; the network has 17"):
            hf.flip_test(model, x, "wflw")


@pytest.mark.parametrize("pair", [(0, 4), (-1, 0)])
def test_pairs_that_are_none(pair: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="4 channels"):
        hf.flip_test(lopsided, image(8, 8), [pair])


def test_a_channel_in_two_pairs() -> None:
    with pytest.raises(InputError, match="more than once"):
        hf.flip_test(lopsided, image(8, 8), [(0, 1), (1, 2)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scales": []}, "positive"),
        ({"scales": [1.0, 0.0]}, "positive"),
        ({"scales": 1.0}, "positive"),
        ({"scales": ["half"]}, "positive"),
        ({"scales": [1.0], "divisor": 0}, "divisor"),
        ({"scales": [1.0], "divisor": 1.5}, "divisor"),
    ],
)
def test_scales_that_are_none(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        hf.multi_scale(lopsided, image(8, 8), **options)


@pytest.mark.parametrize("x", [torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.zeros(3, 64, 64), [[0.0]], None])
def test_images_that_cannot_be_mirrored(x: Any) -> None:
    for evaluate in (lambda: hf.flip_test(lambda y: y, x), lambda: hf.multi_scale(lambda y: y, x, [1.0])):
        with pytest.raises(InputError, match="floating images"):
            evaluate()
