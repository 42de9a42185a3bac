"""What may import what; that importing the package loads little and needs no optional package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hrnet_fast
from hrnet_fast import ops
from hrnet_fast.ops import primitives

PACKAGE = Path(hrnet_fast.__file__).parent
REPORTS = PACKAGE.parent / "benchmarks" / "reports"
# What a part may import of this package and of others; a part not listed is free.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "config": ("hrnet_fast.errors", "hrnet_fast.config"),
    # Coordinates are used by evaluation and by training alike, and know no network.
    "checks": ("torch", "hrnet_fast.errors"),
    "host_operators": ("torch", "hrnet_fast._C"),
    "keypoints": (
        "torch", "hrnet_fast.checks", "hrnet_fast.errors", "hrnet_fast.host_operators", "hrnet_fast.keypoints",
    ),
    # Figures of predictions; which network made them is not their matter.
    "metrics": ("torch", "hrnet_fast.checks", "hrnet_fast.errors", "hrnet_fast.keypoints", "hrnet_fast.metrics"),
    # Readers and batches know no network either, so that they serve any loop.
    "datasets": (
        "torch", "torchvision", "numpy", "PIL", "hrnet_fast.checks", "hrnet_fast.datasets", "hrnet_fast.errors",
        "hrnet_fast.host_operators", "hrnet_fast.keypoints",
    ),
    # What the reference and the fast implementations of batch normalisation both describe layers with.
    "norm_affine": ("torch",),
    "skip_init": ("torch",),
    "random_states": ("torch", "numpy"),
    "whole_files": (),
    "reference": ("torch", "hrnet_fast.config", "hrnet_fast.errors", "hrnet_fast.norm_affine", "hrnet_fast.reference"),
}  # fmt: skip
# Imports go one way: cli, demo and tasks above checkpoints and models, these above the operators.
ABOVE = tuple(
    f"hrnet_fast.{part}"
    for part in (
        "cli", "demo", "integrations", "tasks", "trainer", "evaluation", "recipes", "doctor", "complexity", "launches",
    )
)  # fmt: skip
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "implementations": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.reference"),
    "ops": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.inference", "hrnet_fast.training"),
    # Backends do not depend on what they are compared with.
    "ops/bn_act_compiled": ("hrnet_fast.reference",),
    "kernels/triton": (*ABOVE, "hrnet_fast.ops", "hrnet_fast.training", "hrnet_fast.inference", "hrnet_fast.reference"),
    "training": (
        *ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.inference", "hrnet_fast.kernels",
        "hrnet_fast._C",
    ),
    "models": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.inference"),
    "inference": (
        *ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.reference", "hrnet_fast.kernels.triton",
    ),
    "inference/planning": ("hrnet_fast.inference.execution", "hrnet_fast.inference.engine", "hrnet_fast.ops"),
    "checkpoints": ABOVE,
    # Pictures are read as the tasks read them.
    "detection": (
        "hrnet_fast.cli", "hrnet_fast.demo", "hrnet_fast.integrations", "hrnet_fast.checkpoints",
        "hrnet_fast.inference",
    ),
    "recipes": ("hrnet_fast.cli", "hrnet_fast.trainer", "hrnet_fast.evaluation", "hrnet_fast.training"),
    "evaluation": ("hrnet_fast.cli", "hrnet_fast.trainer", "hrnet_fast.training"),
    "trainer": ("hrnet_fast.cli", "hrnet_fast.demo", "hrnet_fast.integrations", "hrnet_fast.tasks"),
    "training_report": ("hrnet_fast.cli", "hrnet_fast.demo", "hrnet_fast.integrations", "hrnet_fast.training"),
    # Whoever imports a plug-in needs its package: nothing but the command that runs scripts does.
    "tasks": ("hrnet_fast.cli", "hrnet_fast.demo", "hrnet_fast.integrations"),
    "demo": ("hrnet_fast.cli", "hrnet_fast.integrations"),
    "integrations": ("hrnet_fast.cli", "hrnet_fast.demo", "hrnet_fast.tasks", "hrnet_fast.inference"),
}  # fmt: skip


def sources(part: str) -> list[Path]:
    single = PACKAGE / f"{part}.py"
    found = [single] if single.is_file() else sorted((PACKAGE / part).rglob("*.py"))
    assert found, f"{part} is gone; its line here should go as well"
    return found


def imported(path: Path) -> set[str]:
    """Names of everything that a file imports, anywhere in it; ``from a import b`` counts as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize("part", ALLOWED)
def test_leaves_import_nothing_else(part: str) -> None:
    for path in sources(part):
        others = {n for n in imported(path) if n.split(".")[0] not in sys.stdlib_module_names}
        assert {n for n in others if not within(n, ALLOWED[part])} == set(), path


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_point_downwards(part: str) -> None:
    for path in sources(part):
        assert {n for n in imported(path) if within(n, FORBIDDEN[part])} == set(), path


@pytest.mark.slow
def test_the_package_knows_no_benchmarks() -> None:
    """The benchmarks are not installed with it."""
    assert all(not within(name, ("benchmarks",)) for path in PACKAGE.rglob("*.py") for name in imported(path))


def test_result_files_are_read_without_torch() -> None:
    """They are read, drawn and compared on machines that measure nothing."""
    package = ("hrnet_fast.errors", "hrnet_fast.html_report", "hrnet_fast.whole_files")
    known = (*package, "matplotlib", "benchmarks.reports")
    paths = [path for path in REPORTS.glob("*.py") if path.stem != "machine"]
    assert len(paths) > 5
    for path in paths:
        others = {n for n in imported(path) if n.split(".")[0] not in sys.stdlib_module_names}
        assert {n for n in others if not within(n, known)} == set(), path
        assert not {n for n in others if within(n, ("benchmarks.reports.machine",))}, path


@pytest.mark.parametrize("part", ["training", "inference"])
def test_operators_are_used_by_their_public_names(part: str) -> None:
    """The operators themselves, or their computation without checks and autograd; nothing internal to one of them."""
    public = {"hrnet_fast.ops", *(f"hrnet_fast.ops.{name}" for name in ops.__all__)}
    public |= {f"hrnet_fast.ops.primitives.{name}" for name in primitives.__all__}
    used: set[str] = set()
    for path in sources(part):
        names = {n for n in imported(path) if within(n, ("hrnet_fast.ops",))}
        assert names <= public, path
        used |= names
    assert used


def test_device_code_knows_no_framework() -> None:
    """``kernels/cuda`` works on raw pointers: whoever has CUDA can include it."""
    files = [p for p in (PACKAGE / "kernels" / "cuda").iterdir() if p.suffix in (".h", ".cuh")]
    assert files
    standard = {"cstdint", "initializer_list", "type_traits"}
    known = {"HF_CUDA_SHIM", "cuda_bf16.h", "cuda_fp16.h", "cuda_runtime.h", *standard, *(p.name for p in files)}
    for path in files:
        included = re.findall(r"^#include\s+[<\"]?([^>\"\s]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(included) <= known, path


def run_fresh(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.processes
def test_imports_little() -> None:
    """Neither what takes torch seconds to import (compiler, exporters, distributed) nor any optional package."""
    program = """
import sys, torch
before = set(sys.modules)
import hrnet_fast as hf
import hrnet_fast.metrics
hf.HRNet, hf.load_checkpoint, hf.convert_checkpoint, hf.create_model, hf.list_models, hf.FAMILIES
print((sorted(set(sys.modules) - before), sorted({name.partition('.')[0] for name in sys.modules})))
"""
    added, packages = ast.literal_eval(run_fresh(program))
    slow = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed.")
    assert not [name for name in added if name.startswith(slow)]
    assert "hrnet_fast.inference" not in added
    optional = {"triton", "timm", "torchvision", "matplotlib", "PIL", "safetensors", "click"}
    assert not {*optional, "pycocotools", "faster_coco_eval"} & set(packages)


@pytest.mark.slow
@pytest.mark.processes
def test_works_without_triton() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch
import hrnet_fast as hf
model = hf.HRNet(width=4, head="v1", num_outputs=3, num_blocks=1, num_modules=(1, 1, 1)).eval()
with torch.no_grad():
    print(tuple(hf.load_checkpoint(model.state_dict())(torch.zeros(1, 3, 32, 32)).shape))
assert sys.modules["triton"] is None
"""
    assert run_fresh(program).strip() == "(1, 3, 8, 8)"


@pytest.mark.slow
@pytest.mark.processes
def test_works_without_the_compiled_extension() -> None:
    program = """
import sys
sys.modules["hrnet_fast._C"] = None
import torch
import hrnet_fast as hf
from hrnet_fast.implementations import build_info
assert build_info() is None
print(hf.HRNet(width=4, head="v1", num_outputs=3, num_blocks=1, num_modules=(1, 1, 1)).impl)
"""
    assert run_fresh(program).strip() == "reference"


@pytest.mark.slow
@pytest.mark.processes
def test_plug_ins_name_the_package_that_is_absent() -> None:
    """Importing the package, and what the plug-ins share, works without any of theirs."""
    program = """
import importlib, sys
absent = {"openmmlab": "mmengine", "timm": "timm", "lightning": "lightning", "pytorch_lightning": "pytorch_lightning",
          "huggingface": "transformers"}
sys.modules |= dict.fromkeys(absent.values())
import hrnet_fast as hf
from hrnet_fast.errors import MissingPackageError
for plugin, package in absent.items():
    try:
        importlib.import_module(f"hrnet_fast.integrations.{plugin}")
    except MissingPackageError as error:
        assert isinstance(error, ImportError)
        print(str(error).startswith(f"hrnet_fast.integrations.{plugin} "))
        print(str(error).endswith(f"pip install {package}"))
import hrnet_fast.integrations.common
"""
    assert run_fresh(program).split() == ["True"] * 10
