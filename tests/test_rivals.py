"""The networks that benchmarks time HRNet against are those of the paper: its parameter and GFLOP counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.complexity import paper_tables

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from rivals import RIVALS, rival

ROWS = {
    k: v for t in ("17_pose", "18_segmentation", "19_detection") for k, v in paper_tables()["timing"][t]["rows"].items()
}
SIZES = {"simplebaseline": (256, 192), "faster": (800, 1333)}  # segmentation: 1024x2048


def counts(name: str) -> tuple[float, float, nn.Module]:
    size = next((s for begin, s in SIZES.items() if name.startswith(begin)), (1024, 2048))
    with torch.device("meta"), torch.no_grad():
        model = RIVALS[name]().eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size))
    return sum(p.numel() for p in model.parameters()) / 1e6, counter.get_total_flops() / 2 / 2**30, model


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


@pytest.mark.parametrize(("name", "classifier"), [("r50", 25.557), ("r101", 44.549), ("x101_64x4d", 83.455)])
def test_backbones_of_detectors(name: str, classifier: float) -> None:
    """As the classification networks without their last layer; the rest of a detector is the same for all rows."""
    params, gflops, model = counts(f"faster_rcnn_{name}_fpn")
    backbone = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    assert backbone == pytest.approx(classifier - 2.049, abs=0.002)
    assert params - backbone == pytest.approx(3.344, abs=0.01)
    assert gflops < ROWS[f"faster_rcnn_{name}_fpn"][0]


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
