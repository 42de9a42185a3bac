"""Compares ``GraphedStep`` with a plain loop on a device: losses, weights, time and host time of a step.

``python scripts/gpu_check_step.py [--json FILE]`` exits with 1 where results differ by more than two plain loops do, or
where a step that should be captured ran eagerly. ``scripts/gpu_check.py`` can run it as one step.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hrnet_fast as hf

STEPS = 20
TIMED = 30
# Relative to how far weights moved: rounding that 20 steps amplify. Kernels that add atomically differ by `noise` more.
LIMITS = {None: 1e-3, torch.bfloat16: 3e-2}
MSE = nn.MSELoss()
# Implementation, optimizer, dtype of autocast, branches on parallel streams.
CASES = [
    (impl, name, dtype, streams)
    for impl, name, dtype in itertools.product(("reference", "auto"), ("sgd", "adamw"), (None, torch.bfloat16))
    for streams in ((True, False) if impl == "auto" else (False,))
]


def network(tiny: bool, impl: str) -> hf.HRNet:
    torch.manual_seed(0)
    if not tiny:
        return hf.create_model("hrnetv1_w32_pose", impl=impl).train()
    return hf.HRNet(width=4, head="v1", num_outputs=17, num_blocks=1, num_modules=(1, 1, 1), impl=impl).train()


def batches(device: torch.device, tiny: bool) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    height, width = (64, 64) if tiny else (256, 192)
    found = []
    for _ in range(4):
        images = torch.randn(2, 3, height, width, generator=generator)
        targets = torch.rand(2, 17, height // 4, width // 4, generator=generator)
        found.append(tuple(t.pin_memory() if device.type == "cuda" else t for t in (images, targets)))
    return found  # type: ignore[return-value]


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    device = next(model.parameters()).device
    return torch.optim.AdamW(model.parameters(), lr=1e-4, capturable=device.type == "cuda")


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None) -> Callable[..., Tensor]:
    device = next(model.parameters()).device

    def step(images: Tensor, targets: Tensor) -> Tensor:
        optimizer.zero_grad()
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = MSE(model(images), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def trained(step: Callable[..., Tensor], model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the losses of the first steps, and all weights and statistics behind them."""
    losses = [step(*data[k % len(data)]).clone() for k in range(STEPS)]
    state = torch.cat([t.detach().double().flatten() for t in model.state_dict().values()])
    return torch.stack(losses).double().cpu(), state.cpu()


def times(step: Callable[..., Tensor], data: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[float, float]:
    """Return a step's median time and host time in milliseconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    whole, host = [], []
    for k in range(TIMED):
        wait()
        start = time.perf_counter()
        step(*data[k % len(data)])
        host.append(time.perf_counter() - start)
        wait()
        whole.append(time.perf_counter() - start)
    return 1e3 * statistics.median(whole), 1e3 * statistics.median(host)


def compare(
    device: torch.device, tiny: bool, impl: str, name: str, dtype: torch.dtype | None, streams: bool
) -> dict[str, Any]:
    """Train three copies of a network, two by a plain loop and one by ``GraphedStep``; return what was found."""
    first = network(tiny, impl).to(device)
    begin = torch.cat([t.detach().double().flatten() for t in first.state_dict().values()]).cpu()
    data = batches(device, tiny)
    found: dict[str, Any] = {"impl": impl, "optimizer": name, "dtype": str(dtype), "branch_streams": streams}
    results = []
    for kind in ("plain", "again", "graphed"):
        model = copy.deepcopy(first)
        optimizer = optimizer_of(name, model)
        step: Any = plain_step(model, optimizer, dtype)
        if kind == "graphed":
            step = hf.training.GraphedStep(model, MSE, optimizer, dtype=dtype, branch_streams=streams)
        results.append(trained(step, model, data))
        if kind != "again":
            found[f"{kind}_ms"], found[f"{kind}_host_ms"] = times(step, data, device)
    report = step.explain()
    (losses, state), (losses_again, again), (losses_graphed, graphed) = results
    moved = (state - begin).norm()
    found["noise"] = float((again - state).norm() / moved)
    found["weights"] = float((graphed - state).norm() / moved)
    found["losses"] = float(((losses_graphed - losses) / losses).abs().max())
    found["losses_noise"] = float(((losses_again - losses) / losses).abs().max())
    found["captured"] = report.captures == 1 and report.eager == 1
    limit = LIMITS[dtype]
    same = found["weights"] <= max(limit, 4 * found["noise"]) and found["losses"] <= max(
        limit, 4 * found["losses_noise"]
    )
    found["report"] = str(report)
    found["ok"] = bool(same and (found["captured"] or device.type != "cuda"))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compare all cases; 0 if all agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--tiny", action="store_true", help="a network of a few channels")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False
    found = []
    for case in CASES:
        one = compare(given.device, given.tiny, *case)
        found.append(one)
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in one.items() if k != "report"))
        if not one["ok"]:
            print(one["report"])
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(one["ok"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
