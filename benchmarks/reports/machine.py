"""Describes the machine of a run: its device, and the versions of the packages that are measured."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from hrnet_fast import __version__
from hrnet_fast.doctor import package_version, processor_name

PACKAGES = (
    "torch", "triton", "numpy", "onnxruntime", "openvino", "onnx", "timm", "torchvision", "pytest-benchmark",
)  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device's name and the other facts that determine times on it."""
    found: dict[str, Any] = {
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": processor_name(),
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


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the installed ones among PACKAGES."""
    found = {package: package_version(package) for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "hrnet_fast": __version__,
        **{package: version for package, version in found.items() if version},
    }
