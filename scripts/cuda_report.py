"""Compile every CUDA kernel for sm_80, sm_90 and sm_100, and tabulate registers, stack, local and shared memory.

No GPU is needed, only nvcc; ``cuobjdump`` is CUDA's own or the one that Triton ships. Writes ``kernels/REPORT_CUDA.md``
(not with ``--check``). Exits with 1 if a kernel needs stack or local memory, if one that should use 128-bit loads does
not, or if a torch binding does not compile; with 2 if a tool is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "kernels" / "REPORT_CUDA.md"
TARGETS = (80, 90, 100)
TYPES = {"f": "float", "d": "double", "6__half": "half", "13__nv_bfloat16": "bfloat16"}
BYTES = {"float": 4, "double": 8, "half": 2, "bfloat16": 2}
MODES = ("nearest", "bilinear", "bilinear, corners aligned")
# Launchers that together instantiate every kernel: header, function, its first parameters, types.
FLOATS = ("float", "double")
MAPS = (*FLOATS, "__half", "__nv_bfloat16")
LAUNCHERS = (
    ("fuse_sum.cuh", "fuse_sum_forward", "const FuseSumArguments<{0}>&", MAPS),
    ("fuse_sum_backward_launch.cuh", "fuse_sum_backward", "const FuseSumBackwardArguments<{0}>&", MAPS),
    ("bn_act.cuh", "bn_act_apply", "const BnActArguments<{0}>*, int", MAPS),
    ("bn_act.cuh", "bn_backward_input", "const BnBackwardInputArguments<{0}>*, int", MAPS),
    ("bn_act_backward.cuh", "bn_backward_sums", "const BnBackwardSumsArguments<{0}>*, int", MAPS),
    ("bn_act_statistics.cuh", "bn_statistics", "const BnStatisticsArguments<{0}>&", MAPS),
    ("bn_act_affine.cuh", "bn_running_affine", "const BnRunningAffineArguments<{0}>&", FLOATS),
)
# Kernels that read maps in packs of every width: one launch takes several maps.
EVERY_WIDTH = ("bn_statistics_kernel",)
HEADER = """# CUDA kernels, compiled ahead of time

`make cuda-report` wrote this table with nvcc {version}. Width is the values of a pack, where a kernel has one
width; stack and local memory are spills, in bytes per thread, and both must be zero; shared memory, in bytes, includes
what the device keeps for itself. 128-bit loads are counted in the machine code.

| kernel | type | width | mode | layout | target | registers | stack | local | shared | 128-bit loads |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def tool(name: str) -> str:
    """Return the path of a CUDA tool: on the path, or inside the package triton."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        shipped = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        found = str(shipped) if shipped.exists() else None
    if found is None:
        print(f"{name} is neither on the path nor shipped with triton")
        raise SystemExit(2)
    return found


def compiled(header: str, function: str, parameters: str, types: tuple[str, ...], target: int, folder: Path) -> Path:
    """Return the cubin of every instance that a launcher can reach."""
    lines = [f'#include "{header}"', "namespace hrnet_fast::cuda {"]
    lines += [f"template cudaError_t {function}<{t}>({parameters.format(t)}, cudaStream_t);" for t in types]
    source = folder / f"{function}.cu"
    source.write_text("\n".join([*lines, "}"]))
    cubin = folder / f"{function}_{target}.cubin"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-arch=sm_{target}", f"-I{ROOT / 'kernels' / 'cuda'}"]
    subprocess.run([tool("nvcc"), *flags, "-cubin", source, "-o", cubin], check=True)
    return cubin


def instance(symbol: str) -> tuple[str, str, int, str, str]:
    """Name, type, pack width (0: every width, or none), mode and layout of a kernel, from its mangled name."""
    plain = re.match(r"_ZN10hrnet_fast4cuda\d+([a-z_]+?)I(6__half|13__nv_bfloat16|f|d)", symbol)
    if plain is None:
        name = re.search(r"\d+([a-z_]+_kernel)E", symbol)
        return name.group(1) if name else symbol, "double", 1, "", ""
    rest = re.match(r"(?:Li(\d)E)?(?:LNS_8ResampleE(\d)E)?(?:Lb([01])E)?", symbol[plain.end() :])
    assert rest is not None, symbol
    width, mode, last = rest.groups()
    layout = "" if last is None else "channels-last" if last == "1" else "contiguous"
    return plain.group(1), TYPES[plain.group(2)], int(width or 0), MODES[int(mode)] if mode else "", layout


def kernels(binary: Path) -> Iterator[tuple[str, dict[str, int], int]]:
    """Symbol, resources and number of 128-bit loads of each kernel of a cubin or of a library."""

    def dump(option: str) -> str:
        return subprocess.run(
            [tool("cuobjdump"), option, binary], capture_output=True, text=True, check=True, timeout=120
        ).stdout

    loads: dict[str, int] = {}
    for part in re.split(r"Function : ", dump("-sass"))[1:]:
        loads[part.split(None, 1)[0]] = len(re.findall(r"\bLDG\.E\.128", part))
    for symbol, line in re.findall(r"Function (\S+):\n(.*)", dump("-res-usage")):
        yield symbol, {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}, loads[symbol]


def rows(binary: Path, target: str) -> Iterator[tuple[str, str]]:
    """Each kernel's line of the table, and what is wrong with it, if anything."""
    for symbol, used, loads in kernels(binary):
        name, kind, width, mode, layout = instance(symbol)
        cells = (name, kind, width or "", mode, layout, target, used["REG"], used["STACK"], used["LOCAL"],
                 used["SHARED"], loads)  # fmt: skip
        fault = "spills" if used["STACK"] or used["LOCAL"] else ""
        if (width * BYTES[kind] == 16 or name in EVERY_WIDTH) and not loads:
            fault = "reads less than 128 bits at a time"
        yield "| " + " | ".join(map(str, cells)) + " |", fault


def bindings(folder: Path) -> Iterator[tuple[str, float]]:
    """Compile the torch bindings, against a torch that need not have CUDA; their names and seconds."""
    import torch
    from torch.utils.cpp_extension import include_paths

    includes = [f"-I{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    standard = "c++20" if torch.__version__ >= "2.12" else "c++17"
    flags = [f"-std={standard}", "-O3", "--expt-relaxed-constexpr", "-arch=sm_90", "-DHRNET_FAST_WITH_CUDA=1"]
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        start = time.monotonic()
        subprocess.run(
            [tool("nvcc"), "-c", *flags, "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", *includes, source,
             "-o", folder / f"{source.stem}.o"],
            check=True,
        )  # fmt: skip
        yield source.name, time.monotonic() - start


def main() -> int:
    """Compile, tabulate, and report what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, action="append", choices=TARGETS, help="only this architecture")
    parser.add_argument("--extension", type=Path, help="check this compiled extension; needs --check")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--no-bindings", action="store_true", help="leave the torch bindings out")
    arguments = parser.parse_args()
    if arguments.extension and not arguments.check:
        parser.error("a report has all targets: give --check with --extension")
    found: list[tuple[str, str]] = list(rows(arguments.extension, "extension")) if arguments.extension else []
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for target in () if arguments.extension else arguments.target or TARGETS:
                start = time.monotonic()
                for launcher in LAUNCHERS:
                    found += rows(compiled(*launcher, target, folder), f"sm_{target}")
                print(f"sm_{target}: {time.monotonic() - start:.0f} s")
            for source, seconds in () if arguments.extension or arguments.no_bindings else bindings(folder):
                print(f"csrc/cuda/{source}: {seconds:.0f} s")
    except subprocess.CalledProcessError as error:
        print(f"does not compile: {error}")
        return 1
    lines = [line for line, _ in found]
    faults = [f"{fault}: {line}" for line, fault in found if fault]
    if not arguments.check:
        said = subprocess.run([tool("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"V([\d.]+)", said)
        text = HEADER.format(version=version.group(1) if version else "of unknown version")
        REPORT.write_text(text + "\n".join(sorted(lines)) + "\n", encoding="utf-8")
    print(f"{len(lines)} instances compiled, {len(faults)} with a fault")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
