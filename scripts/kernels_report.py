"""Compile every Triton kernel ahead of time for sm_80, sm_90 and sm_100 and tabulate registers and memory.

No GPU is needed: Triton ships the assembler and ``cuobjdump``. Writes ``kernels/REPORT.md`` (not with ``--check``, nor
if an option excludes a target or an operator) and exits with 1 if a kernel spills, or lacks expected tensor-core
instructions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from kernel_instances import INSTANCES, Instance
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = (80, 90, 100)
REPORT = Path(__file__).parents[1] / "kernels" / "REPORT.md"
# PTX of Ampere, Hopper and Blackwell for products on tensor cores.
TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
HEADER = """# Triton kernels, compiled ahead of time

`make kernels-report` wrote this table with triton {version}. Stack and local memory are spills, in bytes per thread;
both must be zero. Shared memory is a program's, in bytes. Where tensor cores multiply, their PTX instruction is named.

| kernel | instance | target | registers | stack | local | shared | tensor cores |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def source(instance: Instance) -> ASTSource:
    """Return what Triton compiles for an instance, with constants and divisibility at their places in tuples."""
    names = instance.kernel.arg_names
    signature, constants, attributes = dict(instance.signature), {}, {}
    for key, value in instance.constants.items():
        name, *index = (key,) if isinstance(key, str) else key
        constants[(names.index(name), *index)] = value
        if index:
            types = list(signature[name])
            types[index[0]] = "constexpr"
            signature[name] = tuple(types)
        else:
            signature[name] = "constexpr"
    for name in instance.divisible:
        place = names.index(name)
        many = isinstance(signature[name], tuple)
        paths = [(place, j) for j in range(len(signature[name]))] if many else [(place,)]
        attributes |= {path: [["tt.divisibility", 16]] for path in paths if path not in constants}
    return ASTSource(instance.kernel, signature=signature, constexprs=constants, attrs=attributes)


def usage(instance: Instance, capability: int) -> dict[str, Any]:
    """Return registers, stack, local and shared memory, and tensor-core instructions, of one compiled instance."""
    options = {"num_warps": instance.warps}
    compiled = triton.compile(source(instance), target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        text = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    # cuobjdump shows static shared memory only; Triton allocates dynamic shared memory at the launch.
    found["SHARED"] = compiled.metadata.shared
    found["MMA"] = ", ".join(sorted(set(TENSOR_CORES.findall(compiled.asm["ptx"])))) or "-"
    return found


def main() -> int:
    """Compile, tabulate, and report faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=int, action="append", choices=TARGETS, help="only this one; writes nothing")
    parser.add_argument("--kernel", action="append", choices=INSTANCES, help="only this operator's; writes nothing")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    targets = [t for t in TARGETS if t in (arguments.target or TARGETS)]
    lines, spills, missing = [], [], []
    for operator in arguments.kernel or INSTANCES:
        for instance in INSTANCES[operator]():
            for capability in targets:
                used = usage(instance, capability)
                figures = (used[k] for k in ("REG", "STACK", "LOCAL", "SHARED", "MMA"))
                row = (instance.kernel.__name__, instance.label, f"sm_{capability}", *figures)
                lines.append("| " + " | ".join(map(str, row)) + " |")
                if used["STACK"] or used["LOCAL"]:
                    spills.append(lines[-1])
                if instance.tensor_cores and used["MMA"] == "-":
                    missing.append(lines[-1])
    partial = len(targets) < len(TARGETS) or arguments.kernel
    if partial and not arguments.check:
        print(f"{REPORT.name} not written: only {', '.join(f'sm_{t}' for t in targets)} compiled")
    elif not arguments.check:
        REPORT.write_text(HEADER.format(version=triton.__version__) + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} instances compiled, {len(spills)} spill, {len(missing)} lack tensor cores")
    print("\n".join(spills + missing))
    return 1 if spills or missing else 0


if __name__ == "__main__":
    sys.exit(main())
