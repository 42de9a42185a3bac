"""What figures were measured on: the device, and the versions that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "triton", "numpy", "onnxruntime", "openvino", "onnx", "timm", "torchvision", "pytest-benchmark",
)  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device's name and what else decides times on it."""
    found: dict[str, Any] = {
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        found |= {"device": p.name, "memory_gib": round(p.total_memory / 2**30, 1), "sm": f"{p.major}{p.minor}"}
        found["cuda"] = torch.version.cuda
    else:
        found |= {"device": f"{found['processor']}, {found['cores']} cores"}
    return found


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return versions of Python, of this package and of those that are installed and take part in benchmarks."""
    from hrnet_fast import __version__

    found = {"python": platform.python_version(), "hrnet_fast": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
