"""Losses: the authors' formulas in float64, gradients, half types, degenerate labels, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from loss_cases import (
    CLASSES,
    backward,
    heatmaps,
    loss_cases,
    pixels,
    plain_cross_entropy,
    plain_keypoint_mse,
    plain_ohem,
    plain_ohkm,
)
from tiny_networks import tiny
from torch import Tensor
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast import InputError
from hrnet_fast.measure import saved_bytes
from hrnet_fast.training import losses

CASES = list(loss_cases())


def close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 1)], ids=str)
def test_keypoint_losses_are_the_authors_formulas(shape: tuple[int, ...]) -> None:
    maps, targets, weights = heatmaps()
    given = weights.view(shape)
    close(losses.keypoint_mse(maps, targets, given), plain_keypoint_mse(maps, targets, weights))
    close(losses.keypoint_mse(maps, targets), plain_keypoint_mse(maps, targets, torch.ones_like(weights)))
    for top_k in (1, 4, 6):
        close(losses.keypoint_ohkm(maps, targets, given, top_k=top_k), plain_ohkm(maps, targets, weights, top_k))
    close(losses.landmark_mse(maps, targets), ((maps - targets) ** 2).sum() / maps.numel())


def test_targets_are_taken_as_encode_keypoints_returns_them() -> None:
    """In float32; a keypoint outside the image has no target and no weight."""
    points = torch.tensor([[[10.0, 20.0], [900.0, 0.0]]])
    targets, weights = hf.encode_keypoints(points, None, (64, 48), (16, 12))
    loss = losses.KeypointMSELoss()(torch.zeros(1, 2, 16, 12), targets, weights)
    torch.testing.assert_close(loss, 0.5 * targets[:, 0].square().mean() / 2)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(13, 17), (4, 5), (3, 2)], ids=str)
def test_cross_entropy_is_the_authors_formula(size: tuple[int, int], align: bool) -> None:
    logits, labels = pixels(size)
    weights = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    of_pixels, shares = plain_cross_entropy(logits, labels, weights, align)
    given = losses.PixelCrossEntropyLoss(weights, align_corners=align)
    close(given(logits, labels), of_pixels.sum() / shares.sum())
    given = losses.PixelCrossEntropyLoss(weights, align_corners=align, divide_by="pixels")
    close(given(logits, labels), of_pixels.sum() / labels.numel())
    of_pixels, _ = plain_cross_entropy(logits, labels, torch.ones_like(weights), align)
    close(losses.pixel_cross_entropy(logits, labels, align_corners=align), of_pixels.mean())


# Labelled pixels: 442 of 442, some of them, some. min_kept below, just before, at and past their number and the map's.
@pytest.mark.parametrize("ignored", [0.0, 0.3, 0.97])
@pytest.mark.parametrize("min_kept", [1, 40, 440, 441, 442, 131_072, (-1,), (0,), (1,)], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_ohem_keeps_the_authors_pixels(threshold: float, min_kept: int | tuple[int], ignored: float) -> None:
    """A tuple is relative to the number of labelled pixels."""
    _, labels = pixels(ignored=ignored)
    logits = torch.randn(2, CLASSES, 13, 17, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(CLASSES, dtype=torch.float64) + 0.5
    kept = min_kept if isinstance(min_kept, int) else int((labels != 255).sum()) + min_kept[0]
    found = losses.ohem_cross_entropy(logits, labels, weights, threshold=threshold, min_kept=kept)
    expected = plain_ohem(logits, labels, weights, threshold, kept)
    close(found, expected)
    pair = torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("min_kept", [50, 110, 111, 300, 441])
def test_ohem_with_ties(min_kept: int) -> None:
    """Few different pixels, each many times: what equals the bound is left out, in float32 too."""
    rows = 3 * torch.randn(6, CLASSES)
    logits = rows[torch.randint(6, (2, 13, 17))].permute(0, 3, 1, 2).contiguous()
    labels = torch.zeros(2, 13, 17, dtype=torch.int64)
    labels[0, :4] = 255
    ones = torch.ones(CLASSES)
    expected = plain_ohem(logits, labels, ones, 1e-3, min_kept)
    found = losses.ohem_cross_entropy(logits, labels, threshold=1e-3, min_kept=min_kept)
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_ohem_upsamples() -> None:
    logits, labels = pixels()
    large = F.interpolate(logits, size=(13, 17), mode="bilinear", align_corners=True)
    ones = torch.ones(CLASSES, dtype=torch.float64)
    loss = losses.OHEMCrossEntropyLoss(threshold=0.1, min_kept=150, align_corners=True)
    close(loss(logits, labels), plain_ohem(large, labels, ones, 0.1, 150))


@pytest.mark.parametrize("loss", [losses.pixel_cross_entropy, losses.ohem_cross_entropy])
def test_where_no_pixel_counts_the_loss_is_nan_and_gradients_are_zero(loss: Any) -> None:
    logits, labels = pixels(ignored=1.1)
    logits.requires_grad_()
    found = loss(logits, labels)
    assert found.isnan()
    assert torch.autograd.grad(found, logits)[0].eq(0).all()


def test_ohem_of_equal_probabilities_is_nan() -> None:
    """None is below the largest: the authors' mean of nothing."""
    logits, labels = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64)
    assert plain_ohem(logits, labels, torch.ones(2), 0.4, 4).isnan()
    assert losses.ohem_cross_entropy(logits, labels, threshold=0.4, min_kept=4).isnan()


def test_auxiliary_losses_are_weighted_in_order() -> None:
    (first, labels), (second, _) = pixels(), pixels()
    ohem, plain = losses.OHEMCrossEntropyLoss(min_kept=20), losses.PixelCrossEntropyLoss()
    both = losses.AuxiliaryLoss(plain)
    close(both([first, second], labels), 0.4 * plain(first, labels) + plain(second, labels))
    both = losses.AuxiliaryLoss(ohem, plain, (0.3, 2))
    close(both((first, second), labels), 0.3 * plain(first, labels) + 2 * ohem(second, labels))
    with pytest.raises(InputError, match="2 outputs for 1 weights"):
        losses.AuxiliaryLoss(plain, weights=[1])([first, second], labels)


def test_a_network_with_two_outputs_trains() -> None:
    model = tiny("ocr").train()
    loss = losses.AuxiliaryLoss(losses.OHEMCrossEntropyLoss(min_kept=100), losses.PixelCrossEntropyLoss())
    loss(model(torch.randn(2, 3, 64, 64)), torch.randint(3, (2, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    case = loss_cases()[name].to()
    assert torch.autograd.gradcheck(case, tuple(case.predictions))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_half_types_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """With autocast and without it, a loss is that of its arguments in float32, and gradients are rounded once."""
    case = loss_cases()[name].to(dtype=dtype)
    wide = case.to(dtype=torch.float32)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found, expected = case(*case.predictions), wide(*wide.predictions)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        for g, e in zip(backward(case), backward(wide), strict=True):
            assert torch.equal(g, e.to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.compile
def test_losses_are_traced_whole_and_repeat(name: str) -> None:
    """No break of the graph, so no value is read; and nothing that PyTorch lists as not deterministic."""
    case = loss_cases()[name].to()
    expected = case(*case.predictions)
    graphs: list[Any] = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    close(torch.compile(case, backend=count, fullgraph=True)(*case.predictions), expected)
    assert len(graphs) == 1
    torch.use_deterministic_algorithms(True)
    assert torch.equal(case(*case.predictions), expected)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(16, 20), (13, 17), (4, 5), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_upsampling_is_as_exact_as_interpolate(dtype: torch.dtype, size: tuple[int, int], align: bool) -> None:
    logits = torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact_logits = logits.detach().double().requires_grad_()
    grad = torch.randn(2, 3, *size, dtype=torch.float64)
    found = losses.upsample_logits(logits, size, align_corners=align)
    plain = F.interpolate(logits, size=size, mode="bilinear", align_corners=align)
    exact = F.interpolate(exact_logits, size=size, mode="bilinear", align_corners=align)
    assert found.is_contiguous()
    assert found.dtype == torch.float32

    def distance(a: Tensor, b: Tensor) -> float:
        return ((a.double() - b).norm() / b.norm()).item()

    assert distance(found, exact) <= 2 * distance(plain, exact) + 2**-23
    gradients = [torch.autograd.grad(t, x, grad.to(t.dtype))[0] for t, x in ((found, logits), (plain, logits))]
    (wanted,) = torch.autograd.grad(exact, exact_logits, grad)
    assert distance(gradients[0], wanted) <= 2 * distance(gradients[1], wanted) + torch.finfo(dtype).eps


def test_upsampling_keeps_nothing_for_backward() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    assert saved_bytes(lambda: losses.upsample_logits(logits, (16, 20))) == 0


def test_class_weights_are_a_buffer_outside_the_state() -> None:
    for kind in (losses.PixelCrossEntropyLoss, losses.OHEMCrossEntropyLoss):
        loss = kind(torch.ones(CLASSES))
        assert not loss.state_dict()
        assert copy.deepcopy(loss).double().class_weights.dtype == torch.float64


MAPS, LABELS = torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64)
REFUSED: dict[str, tuple[Any, str]] = {
    "targets of another shape": (lambda: losses.landmark_mse(MAPS, MAPS[:1]), r"targets are .* \[1, 3, 4, 4\]"),
    "integer targets": (lambda: losses.keypoint_mse(MAPS, MAPS.long()), "targets are torch.int64"),
    "heatmaps without keypoints": (lambda: losses.keypoint_mse(MAPS[:, :0], MAPS[:, :0]), "one element or more"),
    "weights of the batch": (lambda: losses.keypoint_mse(MAPS, MAPS, torch.ones(2)), r"weights are .* \[2\]"),
    "top_k": (lambda: losses.KeypointOHKMLoss(4)(MAPS, MAPS), "top_k=4 of 3 keypoints"),
    "top_k 0": (lambda: losses.KeypointOHKMLoss(0), "top_k=0 must be an integer of at least 1"),
    "labels as probabilities": (lambda: losses.pixel_cross_entropy(MAPS, MAPS), "labels are torch.float32"),
    "labels of another batch": (lambda: losses.pixel_cross_entropy(MAPS, LABELS[:1]), r"\[2, H, W\] in int64"),
    "logits of vectors": (lambda: losses.ohem_cross_entropy(MAPS[0], LABELS), "logits are"),
    "a label of no class": (
        lambda: losses.pixel_cross_entropy(MAPS, LABELS + 3), "target 3 is out of bounds; labels are 0 to 2"
    ),
    "an ignored byte": (
        lambda: losses.ohem_cross_entropy(MAPS, (LABELS + 255).byte(), ignore_label=-1), "target 255 is out of bounds"
    ),
    "weights of fewer classes": (lambda: losses.PixelCrossEntropyLoss(torch.ones(2))(MAPS, LABELS), r"floating \[3\]"),
    "divide_by": (lambda: losses.PixelCrossEntropyLoss(divide_by="all")(MAPS, LABELS), "'weights' and 'pixels'"),
    "min_kept": (lambda: losses.OHEMCrossEntropyLoss(min_kept=0), "min_kept=0"),
    "threshold": (lambda: losses.OHEMCrossEntropyLoss(threshold=float("nan")), "threshold=nan"),
    "one output": (lambda: losses.AuxiliaryLoss(losses.PixelCrossEntropyLoss())(MAPS, LABELS), "a list or tuple"),
    "a size that is none": (lambda: losses.upsample_logits(MAPS, (4,)), "size"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_arguments_are_refused(what: str) -> None:
    call, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_labels_of_fewer_bytes(dtype: torch.dtype) -> None:
    logits, labels = pixels()
    expected = losses.pixel_cross_entropy(logits, labels)
    assert torch.equal(losses.pixel_cross_entropy(logits, labels.to(dtype)), expected)
