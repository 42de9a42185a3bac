"""The host side of CUDA on the null device: launches, and host time relative to eager PyTorch, network by network.

A launch is whatever the host submits to the device: a kernel, a graph, a copy or a fill. Their number is exact. Host
time is the processor time of a call, all threads together, divided by that of eager PyTorch in the same round. The null
device's launches cost next to nothing, and no kernel runs: on a GPU, each launch takes some microseconds more.
"""

from __future__ import annotations

import contextlib
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks.harness import quartiles
from benchmarks.networks import tensors
from benchmarks.reports.machine import ROOT, machine, provenance
from benchmarks.reports.records import Record, Run
from hrnet_fast.errors import HRNetFastError
from hrnet_fast.implementations import ENV_VAR, describe
from hrnet_fast.measure import Call, InterleavedTimer

# The networks of the paper's tables 17 to 19, one that classifies and one that finds landmarks, with their (H, W). That
# of detection is half of the paper's: the null device fills and copies real memory, which would take most of the time.
NETWORKS: dict[str, tuple[int, int]] = {
    "hrnet_w18_small": (224, 224),
    "hrnetv1_w32_pose": (256, 192),
    "hrnetv1_w48_pose": (256, 192),
    "hrnetv2_w48_seg": (512, 1024),
    "hrnetv2p_w32_det": (384, 672),
    "hrnetv2_w18_face": (256, 256),
}
DTYPES = (torch.float32, torch.bfloat16)  # the latter by autocast; engines compute in it
EAGER, OURS = "eager channels-last", "hrnet_fast"
WARM_UPS = 3
DEVICE_BUILD = ROOT / "tests" / "nulldevice" / "device_build.py"


class _HostTimer(InterleavedTimer):
    """Reads the process's processor time, which other processes change less than they change the time of day."""

    def _seconds(self, call: Call) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start


def run_on_null_device(arguments: Sequence[str]) -> int:
    """Run ``python -m benchmarks`` with arguments on the null device; return the exit code."""
    settings = {"NULLDEVICE_ZERO_SCALARS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DEVICE_BUILD), sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, env={**os.environ, **settings}, cwd=ROOT, check=False).returncode


def on_null_device() -> bool:
    return "NULLDEVICE_LIBRARY" in os.environ


def measure(networks: Mapping[str, tuple[int, int]], rounds: int, path: Path) -> Run:
    """Measure networks by name and (H, W), and write the result file after each.

    Raises:
        HRNetFastError: the CUDA kernels are not built, without which other kernels would be counted; or launches differ
            from call to call.
    """
    cuda = describe("cuda")
    if not cuda.usable:
        raise HRNetFastError(f"the host side is measured with the CUDA kernels: {cuda.reason}.")
    torch.set_num_threads(1)
    run = Run(**provenance(torch.device("cuda")), options={"command": "host", "rounds": str(rounds)})
    run.machine |= {"device": "null device", "host": machine(torch.device("cpu"))["device"]}
    for name, size in networks.items():
        for dtype in DTYPES:
            for quantity, calls in (("training step", _training), ("inference", _inference)):
                case = {"case": f"{name} {size[0]}x{size[1]} batch 1", "quantity": quantity,
                        "dtype": str(dtype).removeprefix("torch.")}  # fmt: skip
                run.records += _records(case, calls(name, size, dtype), rounds)
                run.save(path)
    return run


def _records(case: dict[str, Any], calls: Mapping[str, Call], rounds: int) -> list[Record]:
    counts = {name: _launches(call) for name, call in calls.items()}
    timer = _HostTimer(calls, torch.device("cpu"))
    for _ in range(rounds):
        timer.round()
    made = [
        Record("launches", contender=name, unit="launch", value=n, low=n, high=n, rounds=1, **case)
        for name, n in counts.items()
    ]
    for name, seconds in timer.times.items():
        low, middle, high = quartiles([own / eager for own, eager in zip(seconds, timer.times[EAGER], strict=True)])
        given = {
            **case,
            "contender": name,
            "unit": "ratio",
            "value": middle,
            "low": low,
            "high": high,
            "rounds": rounds,
        }
        made.append(Record("host time", params={"seconds": round(statistics.median(seconds), 6)}, **given))
    return made


def _launches(call: Call) -> float:
    """Return the launches of a warm call."""
    import device_counters  # type: ignore[import-not-found]  # on the path of processes on the null device

    for _ in range(WARM_UPS):
        call()
    found = []
    for _ in range(2):
        with device_counters.counting() as n:
            call()
        if n.errors or n.synchronizations:
            raise HRNetFastError(f"a warm call has {n.errors} errors and waits {n.synchronizations} times.")
        found.append(n.launches + n.graph_launches + n.memcpys + n.memsets)
    if len(set(found)) > 1:
        raise HRNetFastError(f"launches differ from call to call: {found}.")
    return float(found[0])


def _made(name: str) -> nn.Module:
    with torch.device("cuda"):  # no kernel draws weights, and none reads them
        model = hf.create_model(name, impl="reference")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _image(size: tuple[int, int]) -> Tensor:
    return torch.zeros(1, 3, *size, device="cuda").to(memory_format=torch.channels_last)


def _loss(outputs: Any) -> Tensor:
    # No square(): its gradient copies the map, and the null device's copies take the host's time.
    maps = [t.float() for t in tensors(outputs)]
    return torch.stack([(t * t).mean() for t in maps]).sum()


def _training(name: str, size: tuple[int, int], dtype: torch.dtype) -> dict[str, Call]:
    """Forward and backward; `GraphedStep` replays both as one graph."""
    model, x = _made(name).train(), _image(size)
    models = {EAGER: model}
    for memory in ("lean", "fast", "min"):
        models[f"{OURS} memory={memory}"] = hf.accelerate(copy.deepcopy(model), impl="cuda", memory=memory)

    def step(model: nn.Module, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:  # as an optimizer's zero_grad; the module's own walks over all modules
            parameter.grad = None
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            outputs = model(x)
        _loss(outputs).backward()  # type: ignore[no-untyped-call]

    def call(model: nn.Module) -> Call:
        parameters = list(model.parameters())
        return lambda: step(model, parameters)

    calls = {name: call(model) for name, model in models.items()}
    low = dtype if dtype != torch.float32 else None
    fast = hf.accelerate(copy.deepcopy(model), impl="cuda", memory="fast")
    graphed = hf.training.GraphedStep(fast, lambda outputs, _: _loss(outputs), dtype=low)
    return calls | {f"{OURS} GraphedStep": lambda: graphed(x, x)}


def _inference(name: str, size: tuple[int, int], dtype: torch.dtype) -> dict[str, Call]:
    model, x = _made(name).eval(), _image(size)
    accelerated = hf.accelerate(copy.deepcopy(model), impl="cuda")
    with _without_kernels():
        engine = hf.optimize_for_inference(model, x, dtype=dtype, verify=False)

    @torch.no_grad()
    def forward(model: nn.Module) -> Any:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            return model(x)

    models: dict[str, Callable[[], Any]] = {EAGER: lambda: forward(model)}
    return models | {f"{OURS} accelerate": lambda: forward(accelerated), f"{OURS} engine": lambda: engine(x)}


@contextlib.contextmanager
def _without_kernels() -> Iterator[None]:
    """Prepare engines without candidates to compile: a warm call replays one graph, whatever is in it."""
    before = os.environ.get(ENV_VAR)
    os.environ[ENV_VAR] = "reference"
    try:
        yield
    finally:
        del os.environ[ENV_VAR]
        if before is not None:
            os.environ[ENV_VAR] = before
