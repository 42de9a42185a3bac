"""Segmentation: passes equal the authors' loops rewritten plainly; batches do not change figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import golden_data
import numpy as np
import pytest
import torch
from made_samples import recipe, segmentation_dataset
from PIL import Image
from tiny_networks import tiny
from torch import Tensor
from torch.nn import functional as F

import hrnet_fast as hf
from hrnet_fast import datasets
from hrnet_fast.errors import InputError
from hrnet_fast.evaluation import evaluate_segmentation
from hrnet_fast.evaluation.segmentation_passes import SegmentationPasses

BLACK = (-2.0, -1.5, -1.0)
PAIRS = ((1, 3),)


def lopsided(x: Tensor) -> Tensor:
    """Logits of a quarter of the size that tell channels, left from right and a window's border apart."""
    weights = torch.linspace(-0.4, 0.5, 4 * 3 * 9, dtype=x.dtype).view(4, 3, 3, 3)
    return F.conv2d(x, weights, stride=4, padding=1)


def passes(**changes: Any) -> SegmentationPasses:
    settings: dict[str, Any] = {
        "scales": (1.0,), "flip": False, "base_size": None, "window": None, "stride": 1.0, "pad_windows": False,
        "average": "exp", "swapped": PAIRS, "black": BLACK, "align_corners": True, "batch_size": 3,
    }  # fmt: skip
    return SegmentationPasses(**settings | changes)


def authors_inference(x: Tensor, flip: bool, align: bool) -> Tensor:
    """``inference`` of one picture: the mean of upsampled logits, and its exponential."""
    logits = F.interpolate(lopsided(x), x.shape[2:], mode="bilinear", align_corners=align)
    if flip:
        mirrored = F.interpolate(lopsided(x.flip(3)), x.shape[2:], mode="bilinear", align_corners=align)
        logits = (logits + mirrored[:, [0, 3, 2, 1]].flip(3)) * 0.5
    return logits.exp()


def authors_scaled(x: Tensor, base: int, scale: float) -> Tensor:
    long, (h, w) = int(base * scale + 0.5), x.shape[2:]
    size = (long, int(w * long / h + 0.5)) if h > w else (int(h * long / w + 0.5), long)
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def authors_cityscapes(x: Tensor, scales: Any, flip: bool, crop: tuple[int, int], align: bool = True) -> Tensor:
    """``lib/datasets/cityscapes.py::multi_scale_inference``: whole up to scale 1, windows inside above it."""
    total = torch.zeros(1, 4, *x.shape[2:], dtype=x.dtype)
    for scale in scales:
        scaled = authors_scaled(x, max(x.shape[2:]), scale)
        if scale <= 1:
            preds = authors_inference(scaled, flip, align)
        else:
            h, w = scaled.shape[2:]
            preds, count = torch.zeros(1, 4, h, w, dtype=x.dtype), torch.zeros(1, 1, h, w, dtype=x.dtype)
            for r in range(math.ceil((h - crop[0]) / crop[0]) + 1):
                for c in range(math.ceil((w - crop[1]) / crop[1]) + 1):
                    y1, x1 = min(r * crop[0] + crop[0], h), min(c * crop[1] + crop[1], w)
                    y0, x0 = max(y1 - crop[0], 0), max(x1 - crop[1], 0)
                    preds[:, :, y0:y1, x0:x1] += authors_inference(scaled[:, :, y0:y1, x0:x1], flip, align)
                    count[:, :, y0:y1, x0:x1] += 1
            preds = preds / count
        total += F.interpolate(preds, x.shape[2:], mode="bilinear", align_corners=align)
    return total


def authors_padded(x: Tensor, h: int, w: int) -> Tensor:
    padded = torch.tensor(BLACK, dtype=x.dtype)[None, :, None, None].repeat(
        1, 1, max(h, x.shape[2]), max(w, x.shape[3])
    )
    padded[:, :, : x.shape[2], : x.shape[3]] = x
    return padded


def authors_base(x: Tensor, scales: Any, flip: bool, crop: tuple[int, int], base: int, align: bool = True) -> Tensor:
    """``lib/datasets/base_dataset.py::multi_scale_inference`` (PASCAL-Context): padded windows, 2/3 apart."""
    step = (int(crop[0] * 2.0 / 3.0), int(crop[1] * 2.0 / 3.0))
    total = torch.zeros(1, 4, *x.shape[2:], dtype=x.dtype)
    for scale in scales:
        scaled = authors_scaled(x, base, scale)
        height, width = scaled.shape[2:]
        if max(height, width) <= min(crop):
            preds = authors_inference(authors_padded(scaled, *crop), flip, align)[:, :, :height, :width]
        else:
            scaled = authors_padded(scaled, *crop)
            h, w = scaled.shape[2:]
            preds, count = torch.zeros(1, 4, h, w, dtype=x.dtype), torch.zeros(1, 1, h, w, dtype=x.dtype)
            for r in range(math.ceil((h - crop[0]) / step[0]) + 1):
                for c in range(math.ceil((w - crop[1]) / step[1]) + 1):
                    y0, x0 = r * step[0], c * step[1]
                    y1, x1 = min(y0 + crop[0], h), min(x0 + crop[1], w)
                    given = authors_padded(scaled[:, :, y0:y1, x0:x1], *crop)
                    preds[:, :, y0:y1, x0:x1] += authors_inference(given, flip, align)[:, :, : y1 - y0, : x1 - x0]
                    count[:, :, y0:y1, x0:x1] += 1
            preds = (preds / count)[:, :, :height, :width]
        total += F.interpolate(preds, x.shape[2:], mode="bilinear", align_corners=align)
    return total


def images(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_cityscapes_passes(flip: bool, batch_size: int) -> None:
    x, scales = images(24, 48), (0.5, 1.0, 1.25, 1.75)
    made = passes(scales=scales, flip=flip, window=(24, 48), batch_size=batch_size)
    torch.testing.assert_close(made(lopsided, x), authors_cityscapes(x, scales, flip, (24, 48)), rtol=1e-12, atol=1e-12)
    larger = images(40, 61, 2)  # windows at scale 1 as well
    found = passes(flip=flip, window=(24, 32), batch_size=batch_size)(lopsided, larger)
    for i in range(2):
        expected = authors_cityscapes(larger[i : i + 1], (1.0000001,), flip, (24, 32))
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(30, 41), (52, 20), (20, 20)])
@pytest.mark.parametrize("align", [False, True])
def test_pascal_context_passes(height: int, width: int, align: bool) -> None:
    x, scales = images(height, width), (0.5, 0.75, 1.0, 2.0)
    made = passes(
        scales=scales, flip=True, window=(24, 24), stride=0.66667, pad_windows=True, base_size=28,
        align_corners=align,
    )  # fmt: skip
    expected = authors_base(x, scales, True, (24, 24), 28, align)
    torch.testing.assert_close(made(lopsided, x), expected, rtol=1e-12, atol=1e-12)


def test_logits_are_averaged_where_asked() -> None:
    x = images(24, 48)
    given = passes(scales=(1.0, 0.5), average="logits", swapped=())(lopsided, x)
    expected = F.interpolate(lopsided(x), (24, 48), mode="bilinear", align_corners=True)
    smaller = F.interpolate(lopsided(authors_scaled(x, 48, 0.5)), (12, 24), mode="bilinear", align_corners=True)
    expected = expected + F.interpolate(smaller, (24, 48), mode="bilinear", align_corners=True)
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(("name", "output"), [("official_seg_w48", 0), ("official_seg_ocr_w48", 1)])
def test_golden_checkpoints(name: str, output: int) -> None:
    """Of OCR's two outputs the last counts."""
    case = golden_data.load_case(name)
    network, x = hf.load_checkpoint(case.state()), golden_data.image(case.input_shape)
    align = network.config.align_corners
    with torch.no_grad():
        found = passes(average="logits", swapped=(), align_corners=align)(network, x)
    expected = case.expected_outputs[output]
    expected = F.interpolate(expected, x.shape[2:], mode="bilinear", align_corners=align)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


SIZES = [(24, 32), (30, 20), (24, 32), (24, 32), (40, 36)]


def test_figures_are_those_of_the_maps(tmp_path: Path) -> None:
    """For pictures of several sizes, in any batches; the definitions are written out."""
    dataset = segmentation_dataset(tmp_path, SIZES, 4, names=("a", "b", "c", "d"))
    crops, network = datasets.SegmentationCrops(crop_size=(24, 24)), tiny("v2", 4)
    shapes: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return network(x.double().float())

    evaluation = recipe("miou", flip=True)
    results = [
        evaluate_segmentation(
            watched, dataset, crops, evaluation, "cpu", batch_size=size, workers=workers, align_corners=False
        )
        for size, workers in ((1, 0), (4, 1))
    ]
    assert [shape[0] for shape in shapes] == [2] * 5 + [6, 2, 2], "pictures of one size go together"
    confusion = torch.zeros(4, 4)
    shares = []
    for i, size in enumerate(SIZES):
        pixels = np.array(Image.open(tmp_path / "pictures" / f"{i}.png")).astype(np.float32) / 255
        x = (torch.from_numpy(pixels).permute(2, 0, 1) - torch.tensor(datasets.MEAN)[:, None, None])[None]
        x = x / torch.tensor(datasets.STD)[:, None, None]
        with torch.no_grad():
            logits = (network(x) + network(x.flip(3)).flip(3)) / 2
        found = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)[0]
        mask = torch.from_numpy(np.array(Image.open(tmp_path / "masks" / f"{i}.png")).astype(np.int64))
        counted = mask != 255
        for label, answer in zip(mask[counted], found[counted], strict=True):
            confusion[label, answer] += 1
        shares.append((found == mask)[counted].float().mean().item())
    true = confusion.diag()
    ious = true / (confusion.sum(0) + confusion.sum(1) - true)
    for result in results:
        assert result.figures["miou"] == pytest.approx(ious.mean().item(), abs=2e-3)
        assert result.figures["iou/c"] == pytest.approx(ious[2].item(), abs=5e-3)
        assert [sample.figure for sample in result.samples] == pytest.approx(shares, abs=5e-3)
        assert [Path(sample.path).name for sample in result.samples] == [f"{i}.png" for i in range(5)]
        assert result.count == 5
    assert 0.1 < results[0].figures["pixel_accuracy"] < 0.9


def test_pictures_of_one_given_size(tmp_path: Path) -> None:
    """As the authors' LIP: resized bytes go through the network, and scores back to the mask."""
    dataset = segmentation_dataset(tmp_path, SIZES, 4, swapped_classes=[(1, 3)])
    shapes = []

    def network(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return lopsided(x)

    crops = datasets.SegmentationCrops(crop_size=(24, 24))
    evaluation = recipe("miou", size=(28, 24), flip=True, average="exp")
    found = evaluate_segmentation(network, dataset, crops, evaluation, "cpu", batch_size=5)
    assert shapes == [(10, 3, 28, 24)]
    sample = dataset[1]
    batch = datasets.CollateSegmentation()([sample])
    whole = torch.tensor([[28, 24]])
    bytes_ = datasets.resized_parts(batch.images, whole, torch.zeros_like(whole), (28, 24))
    scores = authors_inference(datasets.normalize(bytes_), True, True)
    answer = F.interpolate(scores, (30, 20), mode="bilinear", align_corners=True).argmax(1)[0]
    counted = sample.labels != 255
    assert found.samples[1].figure == pytest.approx((answer == sample.labels)[counted].double().mean().item())


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    dataset = segmentation_dataset(tmp_path, SIZES[:1], 4)
    crops = datasets.SegmentationCrops()
    for says, network, evaluation in (
        ("metric='pck'; accepted is 'miou'", lopsided, recipe("pck")),
        ("'classes' given; ConfusionMatrix takes", lopsided, recipe("miou", metric_options={"classes": 3})),
        ("accepted are", tiny("v2", 5), recipe("miou")),
        ("training mode", tiny("v2", 4).train(), recipe("miou")),
    ):
        with pytest.raises(InputError, match=says):
            evaluate_segmentation(network, dataset, crops, evaluation, "cpu")
    (tmp_path / "list.txt").write_text("pictures/0.png\n")
    maskless = datasets.segmentation_list(tmp_path / "list.txt", tmp_path, 4)
    with pytest.raises(InputError, match="has no mask"):
        evaluate_segmentation(lopsided, maskless, crops, recipe("miou"), "cpu")
