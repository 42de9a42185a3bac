"""Builds the null device for the torch of this interpreter, and runs commands on it.

``python tests/nulldevice/device_build.py COMMAND...`` builds it if need be and runs the command with it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import device_stubs
import torch

FOLDER = Path(__file__).parent
SOURCES = sorted((FOLDER / "device").glob("*.cpp"))
CACHE = FOLDER.parents[1] / "build" / "nulldevice"
FLAGS = ["-O1", "-fPIC", "-std=c++20", "-Wall", "-Wno-address"]


@functools.cache
def unsupported_reason() -> str | None:
    """Say what the null device lacks here, or None."""
    if sys.platform != "linux":
        return "the null device is for Linux"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for program in ("g++", "gcc", "nm"):
        if shutil.which(program) is None:
            return f"no {program}"
    if len(_headers()) < 3 or _runtime_library() is None:
        return "torch's CUDA packages are not installed beside it"
    return None


def library() -> Path:
    """Return the folder of libcuda.so.1, built at the first call for these sources and this torch.

    Raises:
        subprocess.CalledProcessError: a compiler failed; what it printed is on standard error.
    """
    inputs = [*SOURCES, *sorted((FOLDER / "device").glob("*.h")), FOLDER / "device_stubs.py"]
    digest = hashlib.sha256(f"{torch.__version__} {FLAGS}".encode())
    for path in inputs:
        digest.update(path.read_bytes())
    folder = CACHE / digest.hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "libcuda.so.1").exists():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    includes = [f"-I{path}" for path in _headers()]
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    compilers = [
        subprocess.Popen(["g++", *FLAGS, *includes, "-c", source, "-o", made])
        for source, made in zip(SOURCES, objects, strict=True)
    ]
    for compiler in compilers:
        if compiler.wait():
            raise subprocess.CalledProcessError(compiler.returncode, compiler.args)
    stubs = folder / "stubs.c"
    device_stubs.write(stubs, Path(torch.__file__).parent / "lib", _headers()[0], _runtime_library(), objects)
    objects.append(stubs.with_suffix(".o"))
    subprocess.run(["gcc", "-O1", "-fPIC", "-w", "-c", stubs, "-o", objects[-1]], check=True)
    unfinished = folder / "unfinished"
    flags = ["-shared", "-Wl,-soname,libcuda.so.1", "-o", unfinished]
    subprocess.run(["g++", *flags, *objects, "-ldl", "-lpthread"], check=True)
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    unfinished.rename(folder / "libcuda.so.1")


def environment(**settings: object) -> dict[str, str]:
    """Return the variables under which a process has the null device.

    Args:
        settings: `devices`, `verbose`, `zero_scalars`, as README.md describes them.
    """
    folder = library()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}

    def before(name: str, first: str) -> None:
        env[name] = f"{first}{os.pathsep}{env[name]}" if env.get(name) else first

    before("LD_PRELOAD", str(folder / "libcuda.so.1"))
    before("LD_LIBRARY_PATH", str(folder))
    before("PYTHONPATH", str(FOLDER))
    env["TRITON_LIBCUDA_PATH"] = str(folder)
    env.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
    env.setdefault("HRNET_FAST_CACHE", "off")  # nothing that was measured here may reach a cache
    env["NULLDEVICE_LIBRARY"] = str(folder / "libcuda.so.1")
    return env | {f"NULLDEVICE_{name.upper()}": str(int(value)) for name, value in settings.items()}  # type: ignore[call-overload]


def _packages() -> Path:
    return Path(torch.__file__).parents[1] / "nvidia"


def _runtime_library() -> Path | None:
    return next(iter(_packages().glob("cu[0-9]*/lib/libcudart.so.1*")), None)


def _headers() -> list[Path]:
    """Folders of the headers of torch's own CUDA; those beside nvcc alone (crt/) come with triton."""
    own = [next(iter(_packages().glob("cu[0-9]*/include")), None), _packages() / "cudnn" / "include"]
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    triton = Path(*(spec.submodule_search_locations or ())) / "backends" / "nvidia" / "include"
    return [path for path in (*own, triton) if path is not None and path.is_dir()]


if __name__ == "__main__":
    lacking = unsupported_reason()
    if lacking is not None:
        sys.exit(f"no null device: {lacking}")
    os.execvpe(sys.argv[1], sys.argv[1:], environment())
