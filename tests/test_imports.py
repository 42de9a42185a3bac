"""What may import what, and that the package imports quickly and with little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hrnet_fast

PACKAGE = Path(hrnet_fast.__file__).parent
READERS = ("records", "figures", "tables", "summary", "plots", "report", "readme", "result_files", "compare")
READER_NAMES = tuple(f"hrnet_fast.bench.{part}" for part in READERS)
# What a part may import of this package and of others; a part not listed is free.
ALLOWED: dict[str, tuple[str, ...]] = {
    "errors": (),
    "config": ("hrnet_fast.errors", "hrnet_fast.config"),
    # Result files are read, drawn and compared without torch: a measurement is not to be repeated to be looked at.
    **{f"bench/{part}": ("hrnet_fast.errors", "matplotlib", "jinja2", *READER_NAMES) for part in READERS},
    # Coordinates are used by evaluation and by training alike, and know no network.
    "checks": ("torch", "hrnet_fast.errors"),
    "keypoints": ("torch", "hrnet_fast.checks", "hrnet_fast.errors", "hrnet_fast.keypoints"),
    "reference": ("torch", "hrnet_fast.config", "hrnet_fast.errors", "hrnet_fast.reference"),
}
# Imports go one way: cli, bench, demo and tasks above checkpoints and models, these above the operators.
ABOVE = tuple(f"hrnet_fast.{part}" for part in ("cli", "bench", "demo", "tasks", "doctor", "complexity", "launches"))
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "implementations": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.reference"),
    "ops": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.inference"),
    "training": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.inference"),
    "models": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.inference"),
    "inference": (*ABOVE, "hrnet_fast.checkpoints", "hrnet_fast.models", "hrnet_fast.reference"),
    "inference/planning": ("hrnet_fast.inference.execution", "hrnet_fast.inference.engine", "hrnet_fast.ops"),
    "checkpoints": ABOVE,
    "tasks": ("hrnet_fast.cli", "hrnet_fast.bench", "hrnet_fast.demo"),
    "demo": ("hrnet_fast.cli", "hrnet_fast.bench"),
    "bench": ("hrnet_fast.cli",),
}


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
def test_arrows_go_one_way(part: str) -> None:
    for path in sources(part):
        assert {n for n in imported(path) if within(n, FORBIDDEN[part])} == set(), path


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


def test_imports_little_of_torch() -> None:
    """What takes seconds to import is not imported: the compiler, exporters, distributed training."""
    program = """
import sys, torch
before = set(sys.modules)
import hrnet_fast as hf
hf.HRNet, hf.load_checkpoint, hf.list_models
print(sorted(set(sys.modules) - before))
"""
    loaded = ast.literal_eval(run_fresh(program))
    assert not [
        n for n in loaded if n.startswith(("torch._dynamo", "torch._inductor", "torch.onnx", "torch.distributed."))
    ]
    assert "hrnet_fast.inference" not in loaded


def test_imports_no_optional_package() -> None:
    program = """
import sys
import hrnet_fast as hf
before = set(sys.modules)
hf.HRNet, hf.load_checkpoint, hf.convert_checkpoint, hf.create_model, hf.FAMILIES
print(sorted({name.partition('.')[0] for name in sys.modules}))
"""
    loaded = ast.literal_eval(run_fresh(program))
    assert not {"triton", "timm", "torchvision", "matplotlib", "PIL", "safetensors", "click"} & set(loaded)


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
