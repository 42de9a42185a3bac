"""Parameters and GFLOPs of a network, beside the paper's (Tables 1, 3, 15, 16 and Appendix D)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.config import HRNetConfig
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
class ComplexityRow:
    """One network of the paper.

    Attributes:
        table: of the paper.
        model: name in this package.
        input_size: (H, W).
        paper_params, paper_gflops: as printed; millions, and multiply-adds / 2^30.
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
    """Return the paper's tables as data: ``complexity`` rows and ``timing`` tables 13, 17, 18 and 19."""
    text = resources.files("hrnet_fast").joinpath("data/paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def complexity_entries() -> list[dict[str, Any]]:
    """Return the complexity rows of the paper's HRNets, without those of other networks."""
    known = set(list_models())
    return [row for row in paper_tables()["complexity"] if row["model"] in known]


def complexity_row(entry: dict[str, Any]) -> ComplexityRow:
    """Return the figures of one entry's network beside the paper's. Takes about two seconds."""
    height, width = entry["input"]
    params, gflops = network_complexity(get_config(entry["model"]), (height, width))
    return ComplexityRow(
        table=entry["table"],
        model=entry["model"],
        input_size=(height, width),
        paper_params=entry["params_m"],
        paper_gflops=entry["gflops"],
        params=params / 1e6,
        gflops=gflops,
        exact=entry.get("exact", False),
        note=entry.get("note", ""),
    )
