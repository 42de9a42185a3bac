"""``accelerate`` in training: bytes kept for backward, operator calls of a fusion, and the time of a step."""

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
from hrnet_fast.measure import Call, error_limit, operator_calls, relative_error, saved_bytes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The paper's size for pose, and a quarter of its pixels for segmentation; the share hardly depends on the size.
NETWORKS = {"hrnetv1_w32_pose": (256, 192), "hrnetv2_w48_seg": (512, 1024)}
SHOWN = {"reference": "eager", "lean": "hrnet_fast", "min": "hrnet_fast memory=min"}


def made(config: hf.HRNetConfig | str, fast: str | None, layout: torch.memory_format) -> nn.Module:
    torch.manual_seed(0)
    config = hf.get_config(config) if isinstance(config, str) else config
    model = hf.HRNet(config, impl="reference").to(DEVICE, memory_format=layout).train()  # type: ignore[call-overload]
    return hf.accelerate(model, memory=fast) if fast else model


def loss_of(output: Any) -> Tensor:
    return torch.stack([m.square().mean() for m in leaves(output)]).sum().to(torch.float64)


def assert_as_exact(given: Any, plain: Any, name: str, x: Tensor) -> None:
    """Check that the error to float64 is within the limit that the plain network's error gives."""
    with torch.no_grad():
        exact = made(name, None, torch.contiguous_format).double()(x.double())
    assert relative_error(given, exact) <= error_limit(relative_error(plain, exact), leaves(given)[0].dtype)


def leaves(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@pytest.mark.usefixtures("within_budget")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def bench_saved_bytes(benchmark: BenchmarkFixture, session: Session, measuring: bool, name: str, dtype: str) -> None:
    size = NETWORKS[name] if measuring else (64, 64)
    if measuring and session.scale == "small" and name.endswith("seg"):
        size = (size[0] // 2, size[1] // 2)
    x = torch.randn(1, 3, *size, device=DEVICE)
    found: dict[str, int] = {}
    outputs: dict[str, Any] = {}
    for kind in SHOWN:
        model = made(name, None if kind == "reference" else kind, torch.contiguous_format)
        precision = torch.autocast(DEVICE, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

        def forward(model: nn.Module = model, kind: str = kind, precision: Any = precision) -> Any:
            with precision:
                outputs[kind] = model(x)
            return outputs[kind]

        found[kind] = saved_bytes(forward, model.parameters())
        if kind == "min":
            benchmark.pedantic(forward, rounds=1)
    for kind in ("lean", "min"):  # a wrong result gets no figure
        assert_as_exact(outputs[kind], outputs["reference"], name, x)
    case = Case("training", f"{name} {size[0]}x{size[1]} batch 1", "kept for backward", getattr(torch, dtype))
    for kind, kept in found.items():
        session.add_bytes(case, SHOWN[kind], kept)
    benchmark.extra_info.update(found)
    benchmark.extra_info.update(
        {f"{kind}_share": round(found[kind] / found["reference"], 3) for kind in ("lean", "min")}
    )
    if measuring:
        print(f"\n{name} {size} {dtype}: {benchmark.extra_info}")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_training_step(
    benchmark: BenchmarkFixture, session: Session, measuring: bool, dtype: str, layout: torch.memory_format
) -> None:
    """HRNetV1-W18 for pose, four images of 256x192: forward, backward and an optimizer's step."""
    config = hf.HRNetConfig.make(18, "v1", 17, upsample="nearest")
    size, batch = ((256, 192), 4) if measuring else ((64, 64), 2)
    x = torch.randn(batch, 3, *size, device=DEVICE).to(memory_format=layout)
    calls: dict[str, Call] = {}
    gradients: dict[str, Tensor] = {}
    for kind in SHOWN:
        model = made(config, None if kind == "reference" else kind, layout)
        calls[kind] = _step(model, x, dtype)
        # In float64: rounding flips no ReLU there, so that the tolerance can be small.
        probe, small = copy.deepcopy(model).double(), x[:2, :, :64, :64].double()
        loss_of(probe(small)).backward()
        gradients[kind] = torch.cat([p.grad.flatten() for p in probe.parameters()])  # type: ignore[union-attr]
    for kind in ("lean", "min"):
        assert relative_error(gradients[kind], gradients["reference"]) < 1e-8
    case = Case("training", f"hrnetv1_w18_pose {size[0]}x{size[1]} batch {batch} {str(layout)[6:]}", "training step",
                getattr(torch, dtype))  # fmt: skip
    session.time_operator(benchmark, case, {SHOWN[kind]: call for kind, call in calls.items()}, 5)


def _step(model: nn.Module, x: Tensor, dtype: str) -> Call:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def call() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(model(x))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


@pytest.mark.usefixtures("within_budget")
def bench_fusion_calls(benchmark: BenchmarkFixture, measuring: bool) -> None:
    """Operator calls of the training forward of a four-branch fusion without its branches."""
    found = {}
    for kind in ("reference", "lean"):
        model = made("hrnetv1_w32_pose", None if kind == "reference" else kind, torch.contiguous_format)
        fusion: Any = model.get_submodule("stage4.0")
        fusion._modules["branches"] = nn.ModuleList(nn.Identity() for _ in range(4))
        xs = [torch.randn(2, 32 << k, 64 >> k, 48 >> k, device=DEVICE) for k in range(4)]
        found[kind] = operator_calls(lambda fusion=fusion, xs=xs: fusion(list(xs)))
    benchmark.extra_info.update(found)
    benchmark.pedantic(lambda: fusion(list(xs)), rounds=1)
    if measuring:
        print(f"\noperator calls of a four-branch fusion: {benchmark.extra_info}")
