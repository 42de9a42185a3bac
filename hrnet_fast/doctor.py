"""Reports versions, devices and usable implementations of this machine (``hrnet-fast doctor``)."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from hrnet_fast import __version__
from hrnet_fast.errors import ImplementationError
from hrnet_fast.implementations import ENV_VAR, NAMES, build_info, describe, resolve
from hrnet_fast.inference import optimize_for_inference
from hrnet_fast.models import HRNet

_PACKAGES = ("torch", "triton", "numpy", "safetensors", "timm", "torchvision", "onnxruntime", "openvino")


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Return the name of a device; of a CPU also its instruction set and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _tool(name: str) -> str | None:
    """Return a tool's version line, or None where it is not on the path."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        out = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return f"{path} (does not run)"
    lines = [line for line in out.splitlines() if line.strip()]
    return next((line for line in lines if "release" in line), lines[0] if lines else path).strip()


def _devices() -> list[str]:
    found = [f"cpu: {device_name(torch.device('cpu'))}"]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found.append(f"cuda:{i}: {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB")
    return found


def engine_check() -> list[str]:
    """Compare engines of a small network with the reference on the CPU, on every device, in two dtypes.

    Returns:
        A line for each, with its executor.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HRNet(width=8, head="v1", num_outputs=2, num_blocks=1, num_modules=(1, 1, 1), impl="reference").eval()
        x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
    lines = []
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device, (dtype, limit) in itertools.product(devices, ((torch.float32, 1e-4), (torch.bfloat16, 0.05))):
        name = f"{str(dtype).removeprefix('torch.')} on {device}"
        try:
            engine = optimize_for_inference(model, x.to(device), dtype=dtype)
            error = ((engine(x.to(device)).cpu() - wanted).norm() / wanted.norm()).item()
            how = engine.explain().splitlines()[2].strip()
            lines.append(f"{name}: {'works' if error <= limit else f'WRONG by {error:.1e}'}; {how}")
        except Exception as error:  # the report lists what fails, whatever the failure
            lines.append(f"{name}: fails: {str(error)[:200]}")
    return lines


def _auto() -> str:
    try:
        return resolve()
    except ImplementationError as error:
        return f"nothing: {error}"


def examine() -> dict[str, Any]:
    """Return versions, devices, tools and implementations of this machine as JSON data."""
    return {
        "hrnet_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "devices": _devices(),
        "tools": {name: _tool(name) for name in ("c++", "nvcc", "ninja")},
        "extension": build_info(),
        "engine": engine_check(),
        "environment": {ENV_VAR: os.environ.get(ENV_VAR)},
        "implementations": {
            name: {"usable": found.usable, "reason": found.reason} for name in NAMES for found in [describe(name)]
        },
        "auto": _auto(),
    }
