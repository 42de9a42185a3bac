"""The first steps of ``scripts/gpu_check.sh``: what the machine has and lacks, and ``hrnet-fast doctor``.

Run as a program it prints the versions of packages and the device, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_check_runner import ROOT, Check, Step

LEAST = {"torch": (2, 10), "triton": (3, 6)}


def tool(name: str) -> str | None:
    """Return the path of a CUDA tool, from PATH or from the CUDA installation."""
    homes = [Path(os.environ.get(v, "")) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    homes.append(Path("/usr/local/cuda"))
    places = [os.environ.get("PATH", "")] + [str(h / d) for h in homes for d in ("bin", "compute-sanitizer")]
    return shutil.which(name, path=os.pathsep.join(places))


def said(*command: str | None, seconds: float = 20.0) -> str:
    """Return the output of a command, empty if it is missing or does not end."""
    if command[0] is None:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
            errors="replace",
        )  # fmt: skip
        return done.stdout.strip()
    return ""


def probe() -> dict[str, Any]:
    """Return the versions of packages and the device of this interpreter."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "device": None, "arch": None}
    for package in ("torch", "triton", "pytest", "pytest_benchmark", "ninja"):
        try:
            found[package] = str(getattr(importlib.import_module(package), "__version__", "of unknown version"))
        except Exception as error:  # a package with missing libraries raises OSError or other errors
            found[package] = None
            found[f"{package}_error"] = str(error)[:200]
    if found["torch"]:
        import torch

        found["torch_cuda"] = torch.version.cuda
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            found |= {"device": torch.cuda.get_device_name(), "arch": f"{major}.{minor}"}
    return found


def older(version: str, least: tuple[int, ...]) -> bool:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < least


def examine(check: Check, python: str, dry_run: bool) -> dict[str, Any]:
    """Record the environment and missing requirements as the first step."""
    start = time.monotonic()
    smi = shutil.which("nvidia-smi")
    (check.out / "environment.log").write_text(said(smi, "-q") or "no nvidia-smi\n")
    try:
        answer = said(python, str(Path(__file__)), seconds=min(60.0, max(1.0, check.deadline - start)))
        found = dict(json.loads(answer.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        found = {}
    nvcc, checker = tool("nvcc"), tool("compute-sanitizer")
    found |= {
        "nvcc": nvcc,
        "nvcc_version": next((v for v in said(nvcc, "--version").splitlines() if "release" in v), None),
        "compute_sanitizer": checker,
        "revision": said("git", "rev-parse", "HEAD") or None,
        "changed": said("git", "status", "--porcelain", "--untracked-files=no").splitlines(),
        "interpreter": python,
    }
    (check.out / "environment.json").write_text(json.dumps(found, indent=1) + "\n")

    lacking = {
        "torch": "torch cannot be imported",
        "device": "torch sees no CUDA device",
        "triton": "triton cannot be imported",
        "pytest": "pytest cannot be imported",
        "pytest_benchmark": "pytest-benchmark cannot be imported",
        "compute_sanitizer": "compute-sanitizer is not installed",
        "nvcc": "nvcc is not installed",
    }
    check.lacking = {name: why for name, why in lacking.items() if not found.get(name)}
    notes = [found.get("device") or "no device", *(f"{p} {found[p]}" for p in LEAST if found.get(p))]
    notes += [f"{p} is older than {'.'.join(map(str, v))}" for p, v in LEAST.items()
              if found.get(p) and older(found[p], v)]  # fmt: skip
    notes += [found["nvcc_version"]] if found["nvcc_version"] else []
    notes += [why for name, why in check.lacking.items() if name != "device"]
    if not (found.get("ninja") or shutil.which("ninja")):
        notes.append("no ninja: the extension is built one file at a time")
    needed = ("torch", "pytest") if dry_run else ("torch", "pytest", "device")
    bad = any(name in check.lacking for name in needed)
    if dry_run:
        # A dry run collects the device tests, skips the memory checker and runs the benchmarks.
        check.lacking = {n: w for n, w in check.lacking.items() if n in ("torch", "pytest", "pytest_benchmark")}
    check.record("environment", "failed" if bad else "ok", 1 if bad else 0, time.monotonic() - start, "; ".join(notes))
    return found


DOCTOR = "import json; from hrnet_fast.doctor import examine; print(json.dumps(examine(), indent=1))"


def doctor(check: Check, python: str, dry_run: bool) -> None:
    """Check ``hrnet-fast doctor``: with a device, built and installed implementations must be usable."""
    check.run(Step("doctor", [python, "-c", DOCTOR], 60, 5, ("torch",)))
    if dry_run or check.records[-1]["status"] != "ok":
        return
    log = (check.out / "doctor.log").read_text(errors="replace")
    try:
        found = json.loads(log[log.index("{\n") :])
        usable = {name: found["implementations"][name]["usable"] for name in ("cuda", "triton")}
        reasons = {name: found["implementations"][name]["reason"] for name in ("cuda", "triton")}
        wrong = [line for line in found["engine"] if "works" not in line]
    except (ValueError, KeyError, TypeError):
        return
    (check.out / "doctor.json").write_text(json.dumps(found, indent=1) + "\n")
    wrong += [
        f"{name} is not usable: {reasons[name]}"
        for name, from_what in (("cuda", "nvcc"), ("triton", "triton"))
        if from_what not in check.lacking and "device" not in check.lacking and not usable[name]
    ]
    if not usable["cuda"]:
        check.lacking["cuda"] = reasons["cuda"]
    if wrong:
        check.record("implementations", "failed", 1, 0, "; ".join(wrong))


if __name__ == "__main__":
    print(json.dumps(probe()))
