"""Describes a run: its device, the versions of the packages that are measured, and the sources' revision."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hrnet_fast import __version__
from hrnet_fast.doctor import package_version, processor_name

ROOT = Path(__file__).parents[2]
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


def revision() -> str:
    """Return the git revision of the sources, with "-dirty" appended if they were changed; "unknown" without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return when, of which sources and on what a run is made, as :class:`~benchmarks.reports.records.Run` has it."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return {
        "created": now.isoformat(), "revision": revision(), "machine": machine(device), "versions": versions(),
    }  # fmt: skip
