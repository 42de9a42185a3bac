"""The rivals of the benchmarks have the parameters and GFLOPs of the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rivals import RIVALS, rival
from hrnet_fast.complexity import paper_tables
from hrnet_fast.skip_init import meta_device

ROWS = {
    k: v for t in ("17_pose", "18_segmentation", "19_detection") for k, v in paper_tables()["timing"][t]["rows"].items()
}
SIZES = {"simplebaseline": (256, 192), "faster": (800, 1216)}  # segmentation: 1024x2048


def counts(name: str) -> tuple[float, float, nn.Module]:
    size = next((s for begin, s in SIZES.items() if name.startswith(begin)), (1024, 2048))
    with meta_device(), torch.no_grad():
        model = RIVALS[name]().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2 / 2**30, model


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in RIVALS if not n.startswith("faster")])
def test_as_the_paper_counts(name: str) -> None:
    params, gflops, model = counts(name)
    if name.startswith("simplebaseline"):
        # The paper counts a deconvolution's products at each output, where a stride of 2 leaves a quarter of them.
        into, at = (2048, 256, 256), [8 * 6 << 2 * k for k in (1, 2, 3)]
        gflops += sum(3 / 4 * c * 256 * 16 * n for c, n in zip(into, at, strict=True)) / 2**30
    assert params == pytest.approx(ROWS[name][1], rel=0.004)
    # PSPNet's stem in the paper is not known.
    assert gflops == pytest.approx(ROWS[name][0], rel=0.035 if name.startswith("pspnet") else 0.011)
    assert isinstance(model, nn.Module)


def proposals_and_boxes(size: tuple[int, int], proposals: int = 512, classes: int = 81) -> tuple[float, float]:
    """Millions (2^20) of parameters and GFLOPs of what all detectors share: a 3x3 and two 1x1 convolutions for three
    anchors on five levels, and four linear layers for each proposal of 256 x 7 x 7.
    """
    places = sum(-(-size[0] // s) * -(-size[1] // s) for s in (4, 8, 16, 32, 64))
    layers = [(256 * 9, 256), (256, 3 + 12)]
    linear = [(256 * 49, 1024), (1024, 1024), (1024, classes), (1024, 4 * (classes - 1))]
    parameters = sum(i * o + o for i, o in layers + linear)
    work = places * sum(i * o for i, o in layers) + proposals * sum(i * o for i, o in linear)
    return parameters / 2**20, work / 2**30


@pytest.mark.parametrize(("name", "classifier"), [("r50", 25.557), ("r101", 44.549), ("x101_64x4d", 83.455)])
def test_detectors_as_the_paper_counts(name: str, classifier: float) -> None:
    """With the rest of a detector, the paper's figures: GFLOPs of 800x1200 padded by 16 columns, 512 proposals and 80
    classes; parameters in 2^20, without normalisations.
    """
    params, gflops, model = counts(f"faster_rcnn_{name}_fpn")
    backbone = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    assert backbone == pytest.approx(classifier - 2.049, abs=0.002)
    norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    rest = proposals_and_boxes(SIZES["faster"])
    expected = ROWS[f"faster_rcnn_{name}_fpn"]
    assert gflops + rest[1] == pytest.approx(expected[0], rel=0.002)
    assert (params * 1e6 - norms) / 2**20 + rest[0] == pytest.approx(expected[1], rel=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["simplebaseline_r50", "dilated_r101", "pspnet_r101", "deeplabv3_r101", "faster_rcnn_r50_fpn"]
)
def test_they_run_and_train(name: str) -> None:
    model = rival(name).train()
    out = model(torch.randn(2, 3, 64, 96))
    maps = out if isinstance(out, list) else [out]
    strides = {"simplebaseline_r50": [4], "faster_rcnn_r50_fpn": [4, 8, 16, 32, 64]}.get(name, [8])
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-64 // s), -(-96 // s)) for s in strides]
    sum(m.mean() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
