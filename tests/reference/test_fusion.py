"""The fusion against an independent computation, and the ablations of the paper's section 7."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_networks import enliven, image, relative_l2, tiny, tiny_config
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.reference.modularized_block import HighResolutionModule
from hrnet_fast.reference.norm import norm_factory
from hrnet_fast.skip_init import meta_device


def resampling_matrix(size: int, target: int, mode: str, align_corners: bool) -> Tensor:
    """The rows of weights that interpolate `size` samples to `target`: [target, size]."""
    matrix = torch.zeros(target, size, dtype=torch.float64)
    for i in range(target):
        if mode == "nearest":
            matrix[i, i * size // target] = 1.0
            continue
        if align_corners:
            place = i * (size - 1) / (target - 1) if target > 1 else 0.0
        else:
            place = max((i + 0.5) * size / target - 0.5, 0.0)
        low = min(int(place), size - 1)
        matrix[i, low] += 1.0 - (place - low)
        matrix[i, min(low + 1, size - 1)] += place - low
    return matrix


def resample(x: Tensor, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
    rows = resampling_matrix(x.shape[2], size[0], mode, align_corners)
    columns = resampling_matrix(x.shape[3], size[1], mode, align_corners)
    return rows @ x @ columns.T


def conv_norm(x: Tensor, layer: Any, stride: int = 1) -> Tensor:
    conv, norm = layer[0].weight, layer[1]
    y = nn.functional.conv2d(x, conv, stride=stride, padding=conv.shape[-1] // 2)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (y - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def term_by_hand(layer: Any, x: Tensor, up: int, size: tuple[int, int], config: hf.HRNetConfig) -> Tensor:
    if up == 0:
        return x
    if up > 0:
        y = conv_norm(x, layer)
        if config.upsample_to == "scale_then_target":
            scaled = (y.shape[2] * 2**up, y.shape[3] * 2**up)
            y = resample(y, scaled, config.upsample, config.align_corners)
        return resample(y, size, config.upsample, config.align_corners)
    if config.downsample == "bilinear":
        return conv_norm(resample(x, size, "bilinear", config.align_corners), layer)
    for step in layer[:-1]:
        x = conv_norm(x, step, 2).clamp(min=0)
    return conv_norm(x, layer[-1], 2)


def fuse_by_hand(module: Any, features: list[Tensor], config: hf.HRNetConfig) -> list[Tensor]:
    outputs = []
    for r, row in enumerate(module.fuse_layers):
        size = (features[r].shape[2], features[r].shape[3])
        terms = [term_by_hand(row[x], f, x - r, size, config) for x, f in enumerate(features)]
        total = torch.stack(terms)
        total = total.prod(0) if config.fusion == "product" else total.sum(0)
        outputs.append(total.clamp(min=0))
    return outputs


def make_module(config: hf.HRNetConfig) -> HighResolutionModule:
    norm = norm_factory(config.norm)
    module = HighResolutionModule(config.stages[-1], config, norm, fuse=True, multiscale_output=True)
    return enliven(module).double().eval()


def branch_inputs(config: hf.HRNetConfig, height: int, width: int) -> list[Tensor]:
    features = []
    for channels in config.out_channels:
        features.append(image(height, width, channels=channels, dtype=torch.float64))
        height, width = (height + 1) // 2, (width + 1) // 2
    return features


VARIANTS: list[dict[str, Any]] = [
    {"upsample": mode, "upsample_to": to, "align_corners": align, "fusion": fusion, "downsample": down}
    for (mode, to), align, fusion, down in itertools.product(
        [("nearest", "scale"), ("nearest", "target"), ("bilinear", "target"), ("bilinear", "scale_then_target")],
        [False, True],
        ["sum", "product"],
        ["strided", "bilinear"],
    )
    if mode == "bilinear" or down == "bilinear" or not align
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_fusion_by_hand(options: dict[str, Any]) -> None:
    config = tiny_config("v2", **options)
    module = make_module(config)
    size = (16, 24) if config.upsample_to == "scale" else (17, 25)
    features = branch_inputs(config, *size)
    with torch.no_grad():
        actual = module(features)
        expected = fuse_by_hand(module, [b(f) for b, f in zip(module.branches, features, strict=True)], config)
    assert len(actual) == len(expected) == 4
    for a, e in zip(actual, expected, strict=True):
        assert relative_l2(a, e) <= 1e-12


def test_two_interpolations_differ_from_one_at_odd_sizes() -> None:
    once = tiny("v2", upsample_to="target").double()
    twice = tiny("v2", upsample_to="scale_then_target").double()
    even, odd = image(64, 96, dtype=torch.float64), image(65, 97, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(once(even), twice(even))
        assert relative_l2(twice(odd), once(odd)) > 1e-3


@pytest.mark.parametrize(("mode", "align_corners"), [("nearest", False), ("bilinear", False), ("bilinear", True)])
def test_upsampling_may_follow_the_convolution(mode: str, align_corners: bool) -> None:
    """The paper upsamples first; weights that sum to one let the cheaper order give the same."""
    config = tiny_config("v2")
    layer = make_module(config).fuse_layers[0][2]  # type: ignore[index]
    x = branch_inputs(config, 17, 25)[2]
    first = conv_norm(resample(x, (17, 25), mode, align_corners), layer)
    after = resample(conv_norm(x, layer), (17, 25), mode, align_corners)
    assert relative_l2(after, first) <= 1e-12


def test_nearest_needs_sizes_that_divide() -> None:
    model = tiny("v1")
    for size in ((65, 96), (64, 97), (48, 64), (100, 100)):
        with pytest.raises(hf.InputError, match="multiples of 32"):
            model(image(*size))
    assert model(image(61, 93)).shape[2:] == (16, 24), "a quarter of it, rounded up, divides"


def test_a_module_alone_refuses_what_it_cannot_meet() -> None:
    config = tiny_config("v2", upsample="nearest", upsample_to="scale")
    with pytest.raises(hf.InputError, match="upsample_to='target'"):
        make_module(config)(branch_inputs(config, 17, 24))


@pytest.mark.parametrize("head", ["v1", "features", "c", "v2p"])
def test_nearest_to_the_target_takes_any_size(head: str) -> None:
    model = tiny(head, upsample="nearest", upsample_to="target")
    reference = tiny(head, upsample="nearest", upsample_to="scale")
    with torch.no_grad():
        model(image(65, 97))
        fitting = image(64, 96)
        for a, b in zip(model(fitting)[0], reference(fitting)[0], strict=True):
            assert torch.equal(a, b), "where sizes fit, both ways are one"


def test_align_corners_belongs_to_the_instance() -> None:
    x = image(64, 96)
    with torch.no_grad():
        plain = tiny("v2", align_corners=False)
        alone = plain(x)
        aligned = tiny("v2", align_corners=True)
        assert relative_l2(aligned(x), alone) > 1e-3
        assert torch.equal(plain(x), alone)


def test_forward_leaves_the_given_list_alone() -> None:
    config = tiny_config("v2")
    module = make_module(config).train()
    features = branch_inputs(config, 16, 16)
    given, copies = list(features), [f.clone() for f in features]
    module(features)
    assert all(a is b for a, b in zip(features, given, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(features, copies, strict=True))


def fusions(model: nn.Module) -> int:
    return sum(m.fuse_layers is not None for m in model.modules() if isinstance(m, HighResolutionModule))


@pytest.mark.parametrize(("units", "count"), [("final", 1), ("across", 3), ("within", 8)])
def test_fusion_units_of_table_12(units: str, count: int) -> None:
    with meta_device():
        assert fusions(hf.HRNet(width=8, head="v1", num_outputs=17, fusion_units=units)) == count


def test_only_the_last_fusion_loses_its_lower_rows() -> None:
    with meta_device():
        model = hf.HRNet(width=8, head="v1", num_outputs=17)
    rows = [len(m.fuse_layers) for m in model.modules() if isinstance(m, HighResolutionModule) and m.fuse_layers]
    assert rows == [2, 3, 3, 3, 3, 4, 4, 1]


def test_all_resolutions_maintained_from_the_second_stage_on() -> None:
    model = tiny("features", num_branches=(4, 4, 4))
    for stage in (model.stage2, model.stage3, model.stage4):
        assert stage[0].num_branches == 4
    assert all(isinstance(layer, nn.Identity) for k in (2, 3) for layer in model.get_submodule(f"transition{k}"))
    assert [tuple(f.shape[1:]) for f in model(image())] == [(4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2)]


def test_bilinear_downsampling_has_no_strided_convolution() -> None:
    for kind, strides in (("bilinear", {1}), ("strided", {1, 2})):
        model = tiny("v2", downsample=kind)
        convs = [m for k, m in model.named_modules() if ".fuse_layers." in k and isinstance(m, nn.Conv2d)]
        assert {c.stride[0] for c in convs} == strides
        assert {c.kernel_size[0] for c in convs} == {1} | ({3} if kind == "strided" else set())
