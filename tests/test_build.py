"""The build of the extension: where CUDA's toolkit lies, and what a failed build says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
from setuptools.errors import LinkError
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, which is run without installing anything."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")  # also undoes what the build sets
        monkeypatch.delenv(name)
    with monkeypatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: None)
        patch.setenv("HRNET_FAST_BUILD", "0")
        return runpy.run_path(str(ROOT / "setup.py"))


def nvcc(folder: Path, says: str) -> Path:
    """Write a program that prints what nvcc prints of its settings."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{says}\nEND\n")
    path.chmod(0o755)
    return path


def test_the_toolkit_is_where_nvcc_says(build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nvcc on PATH is a script that calls one elsewhere."""
    toolkit = tmp_path / "toolkit"
    says = f'#$ _HERE_={toolkit}/bin\n#$ TOP={toolkit}/bin/..\n#$ LIBRARIES=  "-L{toolkit}/lib/stubs" "-L{toolkit}/lib"'
    monkeypatch.setenv("PATH", str(nvcc(tmp_path / "wrapper", says).parent), prepend=":")
    (toolkit / "bin").mkdir(parents=True)
    found = build["find_toolkit"]()
    assert found.home == toolkit
    assert found.library_dirs == [f"{toolkit}/lib/stubs", f"{toolkit}/lib"]


def test_cuda_home_comes_before_the_path(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        nvcc(tmp_path / name, f"#$ TOP={tmp_path / name}")
    monkeypatch.setenv("PATH", str(tmp_path / "one" / "bin"), prepend=":")
    assert build["find_toolkit"]().home == tmp_path / "one"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "two"))
    assert build["find_toolkit"]().home == tmp_path / "two"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    assert build["find_toolkit"]() is None


@pytest.mark.parametrize(
    ("error", "stage"), [(LinkError("no -lcudart"), "do not link"), (RuntimeError("in fuse_sum.cu"), "do not compile")]
)
def test_a_failed_build_says_at_which_stage_and_goes_on(
    build: dict[str, Any],
    error: Exception,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    built: list[list[str]] = []

    def build_extensions(self: Any) -> None:
        sources = self.extensions[0].sources
        if any(source.endswith(".cu") for source in sources):
            raise error
        built.append(sources)

    monkeypatch.setattr(cpp_extension.BuildExtension, "build_extensions", build_extensions)
    command = build["extension"]()["cmdclass"]["build_ext"](setuptools.Distribution())
    command.extensions = [setuptools.Extension("hrnet_fast._C", ["a.cpp", "b.cu"], libraries=["c10", "cudart"])]
    command.build_extensions()
    assert built == [["a.cpp"]]
    assert command.extensions[0].libraries == ["c10"]
    said = capsys.readouterr().err
    assert stage in said
    assert str(error) in said
