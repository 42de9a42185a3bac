"""Builds the optional compiled extension ``hrnet_fast._C``; everything else stands in pyproject.toml.

The extension is built where torch can be imported by the build (``pip install --no-build-isolation``) and a C++
compiler works; with nvcc and a CUDA build of torch the CUDA sources join in, for the architectures in
``TORCH_CUDA_ARCH_LIST``, else for the visible devices', else for data-centre devices since sm_80. Whatever goes wrong
is printed and the install goes on without it: ``hrnet-fast doctor`` says what is missing. ``HRNET_FAST_BUILD=0`` skips
it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent


def extension() -> dict[str, Any]:
    """Return setup() arguments for the extension, or none where it cannot be built."""
    if os.environ.get("HRNET_FAST_BUILD", "1") == "0":
        return {}
    try:
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
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
                print(f"hrnet_fast: the CUDA sources do not build, leaving them out: {error}", file=sys.stderr)
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
    with_cuda = bool(cuda_sources) and CUDA_HOME is not None and _torch_has_cuda()
    if with_cuda and not os.environ.get("TORCH_CUDA_ARCH_LIST") and not _sees_a_device():
        os.environ["TORCH_CUDA_ARCH_LIST"] = _default_architectures(Path(str(CUDA_HOME)) / "bin" / "nvcc")
    kind = CUDAExtension if with_cuda else CppExtension
    sources = [
        "csrc/registration.cpp",
        *sorted(str(p.relative_to(ROOT)) for part in ("cpu", "training") for p in (ROOT / "csrc" / part).glob("*.cpp")),
    ]
    module = kind(  # type: ignore[no-untyped-call]
        "hrnet_fast._C",
        sources + (cuda_sources if with_cuda else []),
        define_macros=[("HRNET_FAST_WITH_CUDA", "1")] if with_cuda else [],
        depends=[str(p.relative_to(ROOT)) for p in _headers()],
        extra_compile_args={
            "cxx": ["-O3", "-fvisibility=hidden", "-fopenmp"],
            "nvcc": ["-O3", "--expt-relaxed-constexpr"],
        },
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuild}}


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
