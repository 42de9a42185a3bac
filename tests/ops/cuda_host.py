"""Host runs of kernels: builds a program of ``tests/cuda_host`` under ASan and UBSan, and feeds it cases.

``tests/cuda_host`` compiles the very ``.cuh`` with a C++ compiler, and the kernels of ``csrc/cpu/picture_kernels.h``.
What that cannot show is what only a GPU does: races between warps, and speed.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
FLAGS = ["-std=c++17", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-strict-aliasing",
         "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # fmt: skip
ABSENT = struct.pack("<4q", 0, 0, 0, 0)


def build(name: str, folders: pytest.TempPathFactory) -> Path:
    """Return ``tests/cuda_host/<name>.cpp``, compiled once: workers share the parent of their temporary folders."""
    folder = folders.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    built = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _compile(name, built)
    return built


def _compile(name: str, built: Path) -> None:
    includes = [f"-I{ROOT / 'kernels' / 'cuda'}", f"-I{ROOT / 'tests' / 'cuda_host'}"]
    source = ROOT / "tests" / "cuda_host" / f"{name}.cpp"
    done = subprocess.run(["g++", *FLAGS, *includes, source, "-o", built], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@dataclass
class Block:
    """A map [N, C, h, w] in memory: whole, or some channels of a wider one whose other channels hold NaN.

    The step is from pixel to pixel of a channels-last map, from channel to channel of a contiguous one.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    last: bool
    before: int = 0  # channels of the wider map before the slice
    after: int = 0
    memory: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n, c, h, w = self.shape
        wide = self.before + c + self.after
        whole = (n, h, w, wide) if self.last else (n, wide, h, w)
        self.memory = torch.full(whole, torch.nan, dtype=self.dtype)

    def view(self) -> Tensor:
        whole = self.memory.permute(0, 3, 1, 2) if self.last else self.memory
        return whole[:, self.before : self.before + self.shape[1]]

    def fill(self, values: Tensor) -> Block:
        self.view().copy_(values)
        return self

    def write(self) -> bytes:
        _, c, h, w = self.shape
        wide = self.before + c + self.after
        offset = self.before if self.last else self.before * h * w
        step = wide if self.last else h * w
        return numbers(self.memory.nbytes, offset, wide * h * w, step) + raw(self.memory)


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def raw(t: Tensor) -> bytes:
    return t.contiguous().view(torch.uint8).numpy().tobytes()


def channel_values(t: Tensor | None) -> bytes:
    return numbers(0) if t is None else numbers(1) + raw(t)


class Results:
    """What the program wrote, read in order."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        return int(struct.unpack("<q", self.take(8))[0])

    def block(self, like: Block) -> Tensor:
        data = np.frombuffer(self.take(like.memory.nbytes), dtype=np.uint8).copy()
        like.memory = torch.from_numpy(data).view(like.dtype).view(like.memory.shape)
        around = like.memory.movedim(-1, 1) if like.last else like.memory
        c = like.before + like.shape[1]
        assert bool(around[:, : like.before].isnan().all() and around[:, c:].isnan().all()), "wrote beside its slice"
        return like.view()


def run(program: Path, folder: Path, cases: Sequence[bytes]) -> Results:
    (folder / "cases").write_bytes(numbers(len(cases)) + b"".join(cases))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [program, folder / "cases", folder / "results"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-4000:]
    return Results((folder / "results").read_bytes())
