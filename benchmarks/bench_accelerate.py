"""``accelerate`` in training: bytes kept for backward, and operator calls of a fusion."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks.harness import Case, Session
from hrnet_fast.measure import error_limit, operator_calls, relative_error, saved_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The paper's size for pose, and a quarter of its pixels for segmentation; the share hardly depends on the size.
NETWORKS = {"hrnetv1_w32_pose": (256, 192), "hrnetv2_w48_seg": (512, 1024)}
SHOWN = {"reference": "eager", "lean": "hrnet_fast memory=lean", "min": "hrnet_fast memory=min"}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return hf.create_model(name, impl="reference").to(DEVICE).train()


def of_kind(plain: nn.Module, kind: str) -> nn.Module:
    """A copy of the network: as it is, or accelerated with a setting of memory."""
    model = copy.deepcopy(plain)
    return model if kind == "reference" else hf.accelerate(model, memory=kind)


def leaves(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@pytest.mark.usefixtures("within_budget")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def bench_saved_bytes(benchmark: BenchmarkFixture, session: Session, measuring: bool, name: str, dtype: str) -> None:
    if not measuring and (name, dtype) == ("hrnetv2_w48_seg", "bfloat16"):
        pytest.skip("measured, not part of the smoke test")
    size = NETWORKS[name] if measuring else (64, 64)
    if measuring and session.scale == "small" and name.endswith("seg"):
        size = (size[0] // 2, size[1] // 2)
    x = torch.randn(1, 3, *size, device=DEVICE)
    found: dict[str, int] = {}
    outputs: dict[str, Any] = {}
    plain = made(name)
    for kind in SHOWN:
        model = of_kind(plain, kind)
        precision = torch.autocast(DEVICE, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

        def forward(model: nn.Module = model, kind: str = kind, precision: Any = precision) -> Any:
            with precision:
                outputs[kind] = model(x)
            return outputs[kind]

        found[kind] = saved_bytes(forward, model.parameters())
        if kind == "min":
            benchmark.pedantic(forward, rounds=1)
    with torch.no_grad():
        exact = plain.double()(x.double())
    own = relative_error(outputs["reference"], exact)
    for kind in ("lean", "min"):  # a wrong result gets no figure
        assert relative_error(outputs[kind], exact) <= error_limit(own, leaves(outputs[kind])[0].dtype)
    case = Case("training", f"{name} {size[0]}x{size[1]} batch 1", "kept for backward", getattr(torch, dtype))
    for kind, kept in found.items():
        session.add_bytes(case, SHOWN[kind], kept)
    benchmark.extra_info.update(found)
    benchmark.extra_info.update(
        {f"{kind}_share": round(found[kind] / found["reference"], 3) for kind in ("lean", "min")}
    )
    if measuring:
        print(f"\n{name} {size} {dtype}: {benchmark.extra_info}")


@pytest.mark.usefixtures("within_budget")
def bench_fusion_calls(benchmark: BenchmarkFixture, measuring: bool) -> None:
    """Operator calls of the training forward of a four-branch fusion without its branches."""
    found = {}
    plain = made("hrnetv1_w32_pose")
    for kind in ("reference", "lean"):
        model = of_kind(plain, kind)
        fusion: Any = model.get_submodule("stage4.0")
        fusion._modules["branches"] = nn.ModuleList(nn.Identity() for _ in range(4))
        xs = [torch.randn(2, 32 << k, 64 >> k, 48 >> k, device=DEVICE) for k in range(4)]
        found[kind] = operator_calls(lambda fusion=fusion, xs=xs: fusion(list(xs)))
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: fusion(list(xs)), rounds=1)
    if measuring:
        print(f"\noperator calls of a four-branch fusion: {benchmark.extra_info}")
