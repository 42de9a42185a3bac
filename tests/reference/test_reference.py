"""Heads and inputs of the reference: what each returns and refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_networks import ALL_HEADS, assert_same, enliven, image, maps, relative_l2, tiny, tiny_config
from torch import Tensor
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast import restore
from hrnet_fast.reference.blocks import Bottleneck

DENSE = ("v1", "v1h", "v2", "face")
CLASSIFIERS = ("c", "ci", "cii")


def run(model: hf.HRNet, x: Tensor) -> Any:
    with torch.no_grad():
        return model(x)


def expected_shapes(head: str, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    """Shapes that a tiny network's outputs have, from the size of its largest map."""
    if head in CLASSIFIERS:
        return [(batch, 3)]
    if head == "features":
        sizes = [(height, width)]
        for _ in range(3):
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        return [(batch, 4 * 2**i, *size) for i, size in enumerate(sizes)]
    if head == "v2p":
        return [(batch, 16, height // 2**k, width // 2**k) for k in range(5)]
    if head == "higher":
        return [(batch, 6, height, width), (batch, 3, 2 * height, 2 * width)]
    return [(batch, 3, height, width)] * (2 if head == "ocr" else 1)


@pytest.mark.parametrize("head", ALL_HEADS)
def test_outputs(head: str) -> None:
    output = run(tiny(head), image(64, 96, batch=2))
    assert type(output) is {"ocr": list, "features": list, "higher": list, "v2p": tuple}.get(head, Tensor)
    assert [tuple(m.shape) for m in maps(output)] == expected_shapes(head, 2, 16, 24)
    for m in maps(output):
        assert torch.isfinite(m).all()
        assert m.std() > 0


@pytest.mark.parametrize("head", ALL_HEADS)
def test_odd_sizes(head: str) -> None:
    model = tiny(head, upsample_to="target")
    output = run(model, image(65, 97))
    assert [tuple(m.shape) for m in maps(output)] == expected_shapes(head, 1, 17, 25)
    assert all(torch.isfinite(m).all() for m in maps(output))


@pytest.mark.parametrize("head", ALL_HEADS)
def test_empty_batch(head: str) -> None:
    output = run(tiny(head), image(64, 64, batch=0))
    assert [tuple(m.shape) for m in maps(output)] == expected_shapes(head, 0, 16, 16)


@pytest.mark.parametrize("head", ALL_HEADS)
def test_images_of_a_batch_do_not_meet(head: str) -> None:
    model, x = tiny(head).double(), image(64, 64, batch=2, dtype=torch.float64)
    both = maps(run(model, x))
    for i in range(2):
        for together, alone in zip(both, maps(run(model, x[i : i + 1])), strict=True):
            assert relative_l2(together[i : i + 1], alone) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "shape"),
    [("v1", (4, 16, 16)), ("v1h", (60, 16, 16)), ("v2", (60, 16, 16)), ("c", (2048,)), ("ci", (60,)), ("cii", (2048,))],
)
def test_without_outputs_the_representation_is_returned(head: str, shape: tuple[int, ...]) -> None:
    output = run(tiny(head, 0), image())
    assert tuple(output.shape) == (1, *shape)
    if len(shape) == 1:
        assert (output >= 0).all(), "pooled from what a ReLU left"


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("head", [*DENSE, "ocr"])
def test_logits_upsampled_to_the_image(head: str, align_corners: bool) -> None:
    x = image(65, 97)
    plain = tiny(head, upsample_to="target", align_corners=align_corners)
    upsampled = tiny(head, upsample_to="target", align_corners=align_corners, upsample_logits=True)
    upsampled.load_state_dict(plain.state_dict())
    for small, large in zip(maps(run(plain, x)), maps(run(upsampled, x)), strict=True):
        expected = F.interpolate(small, size=(65, 97), mode="bilinear", align_corners=align_corners)
        assert torch.equal(large, expected)


@pytest.mark.parametrize("head", DENSE)
def test_wide_last_convolution(head: str) -> None:
    model = tiny(head, kernel_size=3)
    last = model.get_submodule({"v2": "last_layer.3", "face": "head.3"}.get(head, "final_layer"))
    assert last.weight.shape[2:] == (3, 3)
    assert run(model, image()).shape == (1, 3, 16, 16)


def test_out_indices_choose_and_order() -> None:
    everything = tiny("features")
    chosen = tiny("features", out_indices=(2, 0))
    x = image()
    full = run(everything, x)
    assert_same(run(chosen, x), [full[2], full[0]])


def test_widened_features_count_from_the_stem() -> None:
    model = restore(tiny("features", feature_location="incre"))
    x = image(64, 96)
    output = run(model, x)
    assert [tuple(m.shape[1:]) for m in output] == [
        (8, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6), (1024, 2, 3),
    ]  # fmt: skip
    stem = F.relu(model.bn1(F.conv2d(x, model.conv1.weight, stride=2, padding=1)))
    torch.testing.assert_close(output[0], stem)
    for indices in ((3,), (0, 4), (2, 1)):
        chosen = restore(tiny("features", feature_location="incre", out_indices=indices))
        assert_same(run(chosen, x), [output[i] for i in indices])


def test_one_resolution_of_features() -> None:
    output = run(tiny("features", multiscale_output=False), image())
    assert [tuple(m.shape) for m in output] == [(1, 4, 16, 16)]


def test_ocr_can_return_the_main_logits_alone() -> None:
    x = image()
    both, main = tiny("ocr"), tiny("ocr", ocr_outputs="main")
    assert torch.equal(run(main, x), run(both, x)[1])


def test_v1h_by_hand() -> None:
    model = tiny("v1h").double()
    x = image(dtype=torch.float64)
    with torch.no_grad():
        highest = model.forward_features(x)[0]
        conv, norm = model.expand_layer[0], model.expand_layer[1]
        wide = torch.einsum("oi,nihw->nohw", conv.weight[..., 0, 0], highest) + conv.bias.view(-1, 1, 1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        wide = ((wide - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).relu()
        last = model.final_layer
        expected = torch.einsum("oi,nihw->nohw", last.weight[..., 0, 0], wide) + last.bias.view(-1, 1, 1)
    assert wide.shape[1] == 15 * 4
    assert relative_l2(run(model, x), expected) <= 1e-12


def test_ci_by_hand() -> None:
    model = tiny("ci").double()
    x = image(dtype=torch.float64)
    with torch.no_grad():
        pooled = [f.sum((2, 3)) / (f.shape[2] * f.shape[3]) for f in model.forward_features(x)]
        expected = torch.cat(pooled, 1) @ model.classifier.weight.T + model.classifier.bias
    assert relative_l2(run(model, x), expected) <= 1e-12


def test_cii_brings_every_branch_to_512_channels_at_the_lowest_resolution() -> None:
    model = tiny("cii").double()
    x = image(128, 64, dtype=torch.float64)
    rows = [list(row.children()) for row in model.incre_modules]
    assert [len(row) for row in rows] == [4, 3, 2, 1]
    assert all(isinstance(unit, Bottleneck) for row in rows for unit in row)
    assert [[unit.conv2.stride[0] for unit in row] for row in rows] == [[1, 2, 2, 2], [1, 2, 2], [1, 2], [1]]
    with torch.no_grad():
        low = [row(f) for row, f in zip(model.incre_modules, model.forward_features(x), strict=True)]
        expected = torch.cat(low, 1).mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    assert {tuple(m.shape) for m in low} == {(1, 512, 4, 2)}
    assert relative_l2(run(model, x), expected) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c", "ci", "cii", "ocr"])
def test_dropout_acts_in_training_only(head: str) -> None:
    model = tiny(head, dropout=0.5, norm_eval=True)
    x = image()
    assert_same(run(model, x), run(model, x))
    model.train()
    first, second = maps(run(model, x))[-1], maps(run(model, x))[-1]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_input_channels(channels: int) -> None:
    assert run(tiny(in_channels=channels), image(channels=channels)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64), r"\(3, 64, 64\).*x\[None\]"),
        (torch.zeros(1, 1, 3, 64, 64), r"\[N, 3, H, W\]"),
        (torch.zeros(64, 64), r"\[N, 3, H, W\]"),
        (torch.zeros(1, 4, 64, 64), r"\(1, 4, 64, 64\).*\[N, 3, H, W\]"),
        (torch.zeros(1, 64, 64, 3), r"\[N, 3, H, W\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8.*floating"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "int64.*floating"),
        (torch.zeros(1, 3, 65, 64), "65x64.*multiples of 32.*upsample_to='target'"),
    ],
)
def test_inputs_refused(x: Tensor, message: str) -> None:
    model = tiny()
    with pytest.raises(hf.InputError, match=message):
        model(x)
    assert issubclass(hf.InputError, ValueError)


def test_a_scalar_is_refused_as_the_other_ranks() -> None:
    with pytest.raises(hf.InputError):
        tiny()(torch.tensor(1.0))


def test_pyramid_needs_a_pixel_per_level() -> None:
    with pytest.raises(hf.InputError, match=r"64x64.*num_levels"):
        tiny("v2p")(image(32, 32))
    assert len(run(tiny("v2p", num_levels=4), image(32, 32))) == 4


@pytest.mark.parametrize(("init", "std"), [("normal", 0.001), ("kaiming", (2 / (64 * 9)) ** 0.5)])
def test_fresh_weights(init: Any, std: float) -> None:
    model = hf.HRNet(tiny_config(stage1_channels=64, init=init))
    assert model.training
    assert model.layer1[0].conv2.weight.std().item() == pytest.approx(std, rel=0.03)
    for key, value in model.state_dict().items():
        if ".bn" in key or key.startswith("bn"):
            target = 1.0 if key.endswith(("weight", "running_var")) else 0.0
            assert (value == target).all(), key
    before = {k: v.clone() for k, v in model.state_dict().items()}
    enliven(model).reset_parameters()
    assert not torch.equal(before["conv1.weight"], model.conv1.weight)
    assert model.conv1.weight.std() < 0.3 if init == "kaiming" else model.conv1.weight.std() < 0.01


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("head", ALL_HEADS)
def test_fewer_stages(head: str, stages: int) -> None:
    config = tiny_config(head)
    model = enliven(hf.HRNet(config.override(stages=config.stages[:stages]))).eval()
    output = run(model, image(64, 96))
    expected = expected_shapes(head, 1, 16, 24)
    assert [tuple(m.shape) for m in maps(output)] == (expected[:stages] if head == "features" else expected)
