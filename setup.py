"""Builds the optional compiled extension ``hrnet_fast._C``; everything else stands in pyproject.toml.

The extension is built where torch can be imported by the build (``pip install --no-build-isolation``) and a C++
compiler works; with nvcc the CUDA sources join in. Whatever goes wrong is printed and the install goes on without it:
``hrnet-fast doctor`` says what is missing. ``HRNET_FAST_BUILD=0`` skips it.
"""

from __future__ import annotations

import os
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
                self._give_up(error)

        def _give_up(self, error: BaseException) -> None:
            print(f"hrnet_fast: the compiled extension was not built: {error}", file=sys.stderr)
            self.extensions: list[Any] = []

    cuda_sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cuda").glob("*.cu"))
    with_cuda = bool(cuda_sources) and CUDA_HOME is not None and _torch_has_cuda()
    kind = CUDAExtension if with_cuda else CppExtension
    sources = [
        "csrc/registration.cpp",
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc" / "cpu").glob("*.cpp")),
    ]
    module = kind(  # type: ignore[no-untyped-call]
        "hrnet_fast._C",
        sources + (cuda_sources if with_cuda else []),
        define_macros=[("HRNET_FAST_WITH_CUDA", "1")] if with_cuda else [],
        depends=[str(p.relative_to(ROOT)) for p in [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("kernels/cuda/*.h")]],
        extra_compile_args={"cxx": ["-O3", "-fvisibility=hidden", "-fopenmp"]},
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuild}}


def _torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None


setup(**extension())
