"""Parameters and GFLOPs of networks and detectors, beside the paper's (Tables 1, 3, 7, 15, 16 and Appendix D)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.config import HRNetConfig
from hrnet_fast.detection import Detector, DetectorConfig, make_detector_config
from hrnet_fast.models import get_config, list_models
from hrnet_fast.reference import HRNetReference
from hrnet_fast.skip_init import meta_device


def network_complexity(config: HRNetConfig, input_size: tuple[int, int]) -> tuple[int, float]:
    """Return (parameters, GFLOPs) of a network for one image of (H, W), without allocating it.

    GFLOPs are the paper's: multiply-adds of convolutions, linear layers and matrix products, divided by 2^30.
    """
    with meta_device(), torch.no_grad():
        model = HRNetReference(config).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, config.in_channels, *input_size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2 / 2**30


@dataclass(frozen=True)
class Counting:
    """How a figure of a detector in the paper was counted.

    Attributes:
        params_unit, gflops_unit: parameters and multiply-adds are divided by these.
        note: the same in words.
        norms: whether the parameters of normalisations count.
        proposals: that the box heads are counted at.
        masks: that the mask heads are counted at.
        transposed_at_outputs: a transposed convolution counts all products of its kernel at each output, though a
            stride of 2 leaves a quarter of them.
    """

    params_unit: float
    gflops_unit: float
    note: str
    norms: bool = True
    proposals: int = 0
    masks: int = 0
    transposed_at_outputs: bool = False


def detector_complexity(config: DetectorConfig, input_size: tuple[int, int], counting: Counting) -> tuple[float, float]:
    """Return (parameters, multiply-adds) of a detector for one image of (H, W), in the units of `counting`.

    Multiply-adds are those of convolutions and linear layers: backbone, pyramid and dense heads at the image, box heads
    at the proposals, mask heads at the masks. Nothing is allocated.
    """
    formulas = {torch.ops.aten.convolution: _at_outputs} if counting.transposed_at_outputs else {}
    with meta_device(), torch.no_grad():
        model = Detector(config, impl="reference").eval()
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            levels = model.levels(torch.empty(1, config.in_channels, *input_size))
            if config.roi is None:
                model.bbox_head(levels)
            else:
                model.rpn_head(levels)
                width = levels[0].shape[1]
                for head in model.roi_head.box_heads:
                    head(torch.empty(counting.proposals, width, config.roi.pool_size, config.roi.pool_size))
                before = None
                for mask_head in model.roi_head.mask_heads:
                    assert config.roi.mask is not None
                    size = config.roi.mask.pool_size
                    _, features = mask_head(torch.empty(counting.masks, width, size, size), before)
                    before = features if config.roi.mask.information_flow else None
                if config.roi.semantic is not None:
                    model.roi_head.semantic_head(levels)
    left_out = () if counting.norms else (nn.BatchNorm2d, nn.GroupNorm)
    params = sum(p.numel() for m in model.modules() if not isinstance(m, left_out) for p in m.parameters(False))
    return params / counting.params_unit, counter.get_total_flops() / 2 / counting.gflops_unit


def _at_outputs(x: Any, weight: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Return the FLOPs of a convolution with all products of its kernel at each output."""
    transposed = rest[4]
    return int(2 * math.prod(out_shape) * math.prod(weight[2:]) * weight[0 if transposed else 1])


@dataclass(frozen=True)
class ComplexityRow:
    """One network or detector of the paper.

    Attributes:
        table: of the paper.
        model: name in this package.
        input_size: (H, W).
        paper_params, paper_gflops: as printed; millions, and multiply-adds / 2^30, where the note says nothing else.
        params, gflops: ours, in the same units.
        exact: whether the paper's network is known to be the same, so that the digits must agree.
        note: why they differ, where they do.
    """

    table: str
    model: str
    input_size: tuple[int, int]
    paper_params: float
    paper_gflops: float
    params: float
    gflops: float
    exact: bool
    note: str

    @property
    def agrees(self) -> bool:
        """Whether ours, rounded to the digits of the paper's figures, are the paper's."""
        pairs = ((self.params, self.paper_params), (self.gflops, self.paper_gflops))
        return all(round(ours, _decimals(paper)) == paper for ours, paper in pairs)

    @property
    def difference(self) -> float:
        """The larger relative difference of the two figures."""
        return max(abs(self.params / self.paper_params - 1), abs(self.gflops / self.paper_gflops - 1))


def _decimals(value: float) -> int:
    return len(repr(value).partition(".")[2])


def paper_tables() -> dict[str, Any]:
    """Return the paper's tables as data: ``complexity`` rows, their ``countings``, and ``timing`` of 13, 17, 18, 19."""
    text = resources.files("hrnet_fast").joinpath("data/paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def complexity_entries() -> list[dict[str, Any]]:
    """Return the complexity rows of the paper's HRNets, and of the detectors on them."""
    known = set(list_models())
    return [row for row in paper_tables()["complexity"] if row["model"] in known or "detector" in row]


def complexity_row(entry: dict[str, Any]) -> ComplexityRow:
    """Return the figures of one entry beside the paper's. Takes about two seconds."""
    height, width = entry["input"]
    notes = [entry["note"]] if "note" in entry else []
    if "detector" in entry:
        counting = Counting(**paper_tables()["countings"][entry["counting"]])
        detector = make_detector_config(entry["detector"], entry["width"])
        params, gflops = detector_complexity(detector, (height, width), counting)
        notes.append(counting.note)
    else:
        number, gflops = network_complexity(get_config(entry["model"]), (height, width))
        params = number / 1e6
    return ComplexityRow(
        table=entry["table"],
        model=entry["model"],
        input_size=(height, width),
        paper_params=entry["params_m"],
        paper_gflops=entry["gflops"],
        params=params,
        gflops=gflops,
        exact=entry.get("exact", False),
        note="; ".join(notes),
    )
