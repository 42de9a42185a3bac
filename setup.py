"""Builds the optional compiled extension ``hrnet_fast._C``; everything else stands in pyproject.toml.

The extension is built where torch can be imported by the build (``pip install --no-build-isolation``) and a C++
compiler works. With nvcc and a CUDA build of torch it includes the CUDA sources, for the architectures in
``TORCH_CUDA_ARCH_LIST``, else for the visible devices, else for data-centre devices since sm_80. nvcc is taken from
``CUDA_HOME``, else from ``PATH``, and tells where its toolkit lies. A failed build is printed and the install goes on
without the part that failed: ``hrnet-fast doctor`` says what is missing. ``HRNET_FAST_BUILD=0`` skips the extension.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import setup
from setuptools.errors import LinkError

ROOT = Path(__file__).parent


class Toolkit(NamedTuple):
    """An installed CUDA toolkit."""

    home: Path
    library_dirs: list[str]


def extension() -> dict[str, Any]:
    """Return setup() arguments for the extension, or none where it cannot be built."""
    if os.environ.get("HRNET_FAST_BUILD", "1") == "0":
        return {}
    toolkit = find_toolkit()
    if toolkit is not None:
        os.environ["CUDA_HOME"] = str(toolkit.home)  # torch reads it when the next line imports it
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except Exception as error:  # a torch whose libraries are missing raises OSError
        print(f"hrnet_fast: torch cannot be imported by this build ({error}); installing without the extension.")
        return {}

    class OptionalBuild(BuildExtension):  # type: ignore[misc]
        """Builds, or says why not; a failed build never fails the install."""

        def run(self) -> None:
            try:
                super().run()
            except BaseException as error:  # compilers fail in every way there is
                if isinstance(error, KeyboardInterrupt):
                    raise
                self._give_up(error)

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if not self._without_cuda():
                    self._give_up(error)
                    return
                stage = "link" if isinstance(error, LinkError) else "compile"
                print(f"hrnet_fast: the CUDA sources do not {stage}; building without them: {error}", file=sys.stderr)
                self.build_extensions()

        def _without_cuda(self) -> bool:
            """Take the CUDA sources out of the build; False where there are none."""
            found = False
            for module in self.extensions:
                kept = [source for source in module.sources if not source.endswith(".cu")]
                found = found or len(kept) < len(module.sources)
                module.sources = kept
                module.define_macros = [m for m in module.define_macros if m[0] != "HRNET_FAST_WITH_CUDA"]
                module.libraries = [name for name in module.libraries if "cuda" not in name]
            return found

        def _give_up(self, error: BaseException) -> None:
            print(f"hrnet_fast: the compiled extension was not built: {error}", file=sys.stderr)
            self.extensions: list[Any] = []

    cuda_sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cuda").glob("*.cu"))
    with_cuda = toolkit is not None and _torch_has_cuda()
    if toolkit is not None and not os.environ.get("TORCH_CUDA_ARCH_LIST") and not _sees_a_device():
        os.environ["TORCH_CUDA_ARCH_LIST"] = _default_architectures(toolkit.home / "bin" / "nvcc")
    kind = CUDAExtension if with_cuda else CppExtension
    sources = [
        "csrc/registration.cpp",
        *sorted(str(p.relative_to(ROOT)) for part in ("cpu", "training") for p in (ROOT / "csrc" / part).glob("*.cpp")),
    ]
    module = kind(  # type: ignore[no-untyped-call]
        "hrnet_fast._C",
        sources + (cuda_sources if with_cuda else []),
        define_macros=[("HRNET_FAST_WITH_CUDA", "1")] if with_cuda else [],
        library_dirs=toolkit.library_dirs if toolkit is not None and with_cuda else [],
        depends=[str(p.relative_to(ROOT)) for p in _headers()],
        extra_compile_args={
            "cxx": ["-O3", "-fvisibility=hidden", "-fopenmp"],
            "nvcc": ["-O3", "--expt-relaxed-constexpr"],
        },
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuild}}


def find_toolkit() -> Toolkit | None:
    """Return the toolkit that nvcc states in its dry run, or None without nvcc.

    An nvcc on PATH may be a script that calls the compiler elsewhere, so its own folder says nothing.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home, "bin", "nvcc") if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        done = subprocess.run([nvcc, "--dryrun", "any.cu"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    settings = dict(re.findall(r"^#\$ (\w+)= *(.*)$", done.stderr, re.MULTILINE))
    if "TOP" not in settings:
        return None
    directories = re.findall(r'"-L([^"]+)"', settings.get("LIBRARIES", ""))
    return Toolkit(Path(settings["TOP"]).resolve(), [str(Path(d).resolve()) for d in directories])


def _headers() -> list[Path]:
    return [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("kernels/cuda/*.h"), *ROOT.glob("kernels/cuda/*.cuh")]


def _sees_a_device() -> bool:
    import torch

    return torch.cuda.is_available()


def _default_architectures(nvcc: Path) -> str:
    """Return 8.0;9.0;10.0, as far as this nvcc knows them, and the last one's PTX for what comes after it."""
    try:
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        known = []
    wanted = [a for a in ("8.0", "9.0", "10.0") if f"compute_{a.replace('.', '')}" in known] or ["8.0"]
    return ";".join(wanted) + "+PTX"


def _torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None


setup(**extension())
