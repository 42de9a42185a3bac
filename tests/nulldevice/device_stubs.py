"""Writes C stubs for every CUDA entry that torch's libraries need and the null device's objects do not define.

Handles are non-null and remember their stream, computations count as one kernel. What would fill in an answer (sizes,
results on the host) returns the library's NOT_SUPPORTED instead of garbage, and so do all entries of the runtime and of
the driver that are not written by hand.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

NOT_SUPPORTED = {
    "cublas": 15, "cudnn": 3000, "cusparse": 10, "cusolver": 16, "cufft": 16, "curand": 204, "nccl": 5, "cuFile": 5027
}  # fmt: skip
RUNTIME_NOT_SUPPORTED = 801
# Answered by the real library, which needs no device for it.
REAL = re.compile(r"Version|ErrorString|ErrorName|StatusString|GetProperty|ncclGetUniqueId|cusparseLtGet")
HELPERS = """int nulldevice_unsupported(const char*, int);
void nulldevice_set_stream(void*, void*);
void* nulldevice_stream(void*);
void* nulldevice_handle(void);
void nulldevice_free_handle(void*);
void nulldevice_execute(void*, const char*);
"""


def write(out: Path, torch_libraries: Path, headers: Path, runtime: Path, objects: Sequence[Path]) -> None:
    """Write the stubs.

    Args:
        out: the C file.
        torch_libraries: folder of torch's shared libraries.
        headers: folder of cuda.h.
        runtime: libcudart.
        objects: compiled files whose definitions take the place of stubs.
    """
    defined = {name for path in objects for name in _symbols(path, "--defined-only")}
    wanted = {n for path in torch_libraries.glob("lib*.so") for n in _symbols(path, "-D", "--undefined-only")}
    lines = [HELPERS]
    for name in sorted(wanted - defined):
        code = next((c for prefix, c in NOT_SUPPORTED.items() if re.match(prefix + "[A-Z]", name)), None)
        if code is not None and not REAL.search(name):
            lines.append(_library_stub(name, code))
    of_runtime = {n for n in _symbols(runtime, "-D", "--defined-only") if re.match(r"(__)?cuda[A-Z]", n)}
    of_driver = set(re.findall(r"CUDAAPI (cu[A-Z]\w+)\(", (headers / "cuda.h").read_text(errors="ignore")))
    lines += [_unsupported(name, RUNTIME_NOT_SUPPORTED) for name in sorted((of_runtime | of_driver) - defined)]
    out.write_text("\n".join(lines) + "\n")


def _symbols(path: Path, *flags: str) -> set[str]:
    """Return the names in a symbol table, without versions."""
    lines = subprocess.run(["nm", *flags, str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.split()}


def _unsupported(name: str, code: int) -> str:
    return f'int {name}(void) {{ return nulldevice_unsupported("{name}", {code}); }}'


def _library_stub(name: str, code: int) -> str:
    """Return the C function for an entry of a library."""
    if name.startswith(("nccl", "cuFile")):
        return _unsupported(name, code)
    if re.search(r"SetStream(_v2)?$", name):
        return f"int {name}(void* h, void* s) {{ nulldevice_set_stream(h, s); return 0; }}"
    if re.search(r"GetStream(_v2)?$", name):
        return f"int {name}(void* h, void** s) {{ *s = nulldevice_stream(h); return 0; }}"
    if re.search(r"(^cusolverDn|^cusparse|^cublas|^cudnn)\w*Create", name):
        return f"int {name}(void** out) {{ *out = nulldevice_handle(); return 0; }}"
    if "Destroy" in name:
        return f"int {name}(void* h) {{ nulldevice_free_handle(h); return 0; }}"
    if re.search(r"ufferSize|Size$|Get[A-Z]|Find[A-Z]|_analysis", name):
        return _unsupported(name, code)
    if re.search(r"Set[A-Z]|AlgoInit|AlgoCheck|cusparseLtInit", name):
        return f"int {name}(void) {{ return 0; }}"
    return f'int {name}(void* h) {{ nulldevice_execute(h, "{name}"); return 0; }}'
