"""Compile every Triton kernel ahead of time for sm_80, sm_90 and sm_100 and tabulate registers, spills, shared memory.

No GPU is needed: Triton ships the assembler and ``cuobjdump``. Writes ``kernels/REPORT.md`` (not with ``--check``, nor
when ``--target`` leaves an architecture out) and exits with 1 if any kernel spills.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from kernel_instances_bn_act import bn_act_instances
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hrnet_fast.kernels.triton import fuse_sum

TARGETS = (80, 90, 100)
REPORT = Path(__file__).parents[1] / "kernels" / "REPORT.md"
HEADER = """# Triton kernels, compiled ahead of time

`make kernels-report` wrote this table with triton {version}. Stack and local memory are spills, in bytes per thread;
both must be zero.

| kernel | instance | target | registers | stack | local | shared |
| --- | --- | --- | --- | --- | --- | --- |
"""


def fuse_sum_instances() -> Iterator[tuple[Any, str, dict[str, Any], dict[str, Any]]]:
    """Forward of a four-branch target, backward of its upsampled and of its identity term, as fusions call them."""
    ints = dict.fromkeys(("channels", "height", "width"), "i32")
    for dtype in ("fp32", "bf16"):
        for last in (True, False):
            block_p, block_c = fuse_sum.tile(48, last)
            common = {"CHANNELS_LAST": last, "BLOCK_P": block_p, "BLOCK_C": block_c, "RELU": True}
            for mode, name in ((0, "nearest"), (1, "bilinear"), (2, "bilinear, corners aligned")):
                layout = "channels-last" if last else "contiguous"
                label = f"{dtype}, {layout}, {name}"
                lists = {"xs": (f"*{dtype}",) * 4, "scales": ("*fp32",) * 4, "shifts": ("*fp32",) * 4}
                signature = {"out": f"*{dtype}", **lists, "heights": ("i32",) * 4, "widths": ("i32",) * 4, **ints}
                constants = {"TERMS": 4, "AFFINE": 0b1110, "SAME": 0b0001, "MODE": mode, **common}
                yield fuse_sum.fuse_sum_kernel, label, signature, constants
                for same in (False, True):
                    signature = {
                        "grad": f"*{dtype}", "out": f"*{dtype}", "x_in": f"*{dtype}", "scale_in": "*fp32",
                        "grad_x": f"*{dtype}", "sums": "*fp32", "products": "*fp32", **ints,
                        "h": "i32", "w": "i32", "reach_y": "i32", "reach_x": "i32",
                    }  # fmt: skip
                    constants = {"SAME": same, "AFFINE": True, "WANT_X": True, "WANT_AFFINE": True, "MODE": mode}
                    detail = label + (", identity" if same else ", upsampled")
                    yield fuse_sum.fuse_sum_backward_kernel, detail, signature, {**constants, **common}


def usage(kernel: Any, signature: dict[str, Any], constants: dict[str, Any], capability: int) -> dict[str, int]:
    """Return registers, stack, local and shared memory of one compiled instance."""
    full = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature=full, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        text = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text))
    return {k: int(v) for k, v in found.items()}


def main() -> int:
    """Compile, tabulate, and report spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--target", type=int, action="append", choices=TARGETS, help="only this architecture; writes nothing"
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    targets = [t for t in TARGETS if t in (arguments.target or TARGETS)]
    lines, spills = [], []
    for kernel, label, signature, constants in (*fuse_sum_instances(), *bn_act_instances()):
        for capability in targets:
            used = usage(kernel, signature, constants, capability)
            row = (kernel.__name__, label, f"sm_{capability}", *(used[k] for k in ("REG", "STACK", "LOCAL", "SHARED")))
            lines.append("| " + " | ".join(map(str, row)) + " |")
            if used["STACK"] or used["LOCAL"]:
                spills.append(lines[-1])
    if len(targets) < len(TARGETS):
        print(f"{REPORT.name} not written: only {', '.join(f'sm_{t}' for t in targets)} compiled")
    elif not arguments.check:
        REPORT.write_text(HEADER.format(version=triton.__version__) + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} instances compiled, {len(spills)} spill")
    print("\n".join(spills))
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
