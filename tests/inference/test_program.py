"""The compiled program step by step against PyTorch, in memory full of NaN, on teams of every size."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import relative_l2
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.inference.execution import cpu_executor

if not cpu_executor.available():
    pytest.skip("the compiled extension is not there", allow_module_level=True)

from hrnet_fast import _C

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
MODES = [("nearest", False), ("bilinear", False), ("bilinear", True)]


class Builder:
    """A program whose buffers lie one after another, or where they are told to."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.bytes, self.wave = dtype, 0, 0
        self.program = _C.Program(cpu_executor.DTYPES[dtype])

    def buffer(self, n: int, channels: int, height: int, width: int, at: int | None = None) -> int:
        at = self.bytes if at is None else at
        size = _C.map_bytes(cpu_executor.DTYPES[self.dtype], n, height, width, channels)
        self.bytes = max(self.bytes, at + size)
        return int(self.program.buffer(at, n, height, width, channels))

    def step(self, kind: str, *args: Any) -> None:
        getattr(self.program, kind)(self.wave, *args)
        self.wave += 1

    def load(self, index: int, x: Tensor, offset: int = 0, beside: int = 0) -> tuple[int, int]:
        """Import `x` into channels from `offset` on; `beside` others lie behind them."""
        n, c, h, w = x.shape
        place = (self.buffer(n, offset + c + beside, h, w), offset)
        self.step("input", place, index, c, None, None)
        return place

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], threads: int = 1) -> list[Tensor]:
        """Finish and run, in memory that is NaN for every dtype."""
        self.program.finish(self.bytes)
        return self.again(inputs, outputs, threads)

    def again(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], threads: int = 1) -> list[Tensor]:
        arena = torch.full((self.bytes + 64,), 255, dtype=torch.uint8)
        self.program.run(list(inputs), list(outputs), arena, threads)
        return list(outputs)


def assert_as_good(given: Tensor, torchs: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """At most twice PyTorch's own error, and one rounding."""
    assert relative_l2(given, exact) <= 2 * relative_l2(torchs, exact) + ROUNDING[dtype]


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    """Values that `dtype` holds, in float32."""
    return torch.randn(shape).to(dtype).float()


def strided(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2] + 1, 2 * x.shape[3]), float("nan"), dtype=x.dtype)
        wide[:, 1:-1, 1:, ::2] = x
        return wide[:, 1:-1, 1:, ::2]
    return x[:1].expand_as(x) if layout == "expanded" else x


LAYOUTS = ["contiguous", "channels_last", "sliced", "expanded"]


@DTYPES
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_and_outputs(dtype: torch.dtype, given: torch.dtype, layout: str) -> None:
    x = strided(torch.randn(2, 19, 5, 7).to(given), layout)
    x[0, 3, 2, 1] = float("inf")
    for made in (torch.float32, torch.bfloat16, torch.float16):
        for out_layout in LAYOUTS[:3]:
            build = Builder(dtype)
            build.step("output", build.load(0, x, offset=3, beside=2), 19, 0)
            (out,) = build.run([x], [strided(torch.empty(x.shape, dtype=made), out_layout)])
            assert torch.equal(out, x.to(dtype).to(made))


@DTYPES
@pytest.mark.parametrize("contiguous", [True, False])
def test_images_of_bytes(dtype: torch.dtype, contiguous: bool) -> None:
    images = torch.randint(0, 256, (2, 9, 11, 3), dtype=torch.uint8)
    images = images if contiguous else images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    scale, shift = torch.tensor([0.017, 0.0175, 0.0174]), torch.tensor([-2.1, -2.0, -1.8])
    build = Builder(dtype)
    place = (build.buffer(2, 3, 9, 11), 0)
    build.step("input", place, 0, 3, scale.tolist(), shift.tolist())
    build.step("output", place, 3, 0)
    (out,) = build.run([images], [torch.empty(2, 3, 9, 11)])
    torchs = (images.float() * scale + shift).permute(0, 3, 1, 2)
    exact = (images.double() * scale.double() + shift.double()).permute(0, 3, 1, 2)
    assert_as_good(out, torchs.to(dtype), exact, dtype)


def summed(
    xs: Sequence[Tensor], size: tuple[int, int], modes: Sequence[tuple[str, bool]], relu: bool, dtype: torch.dtype,
    offset: int = 0, threads: int = 1,
) -> Tensor:  # fmt: skip
    n, channels = xs[0].shape[:2]
    build = Builder(dtype)
    places = [build.load(k, x, offset, beside=k) for k, x in enumerate(xs)]
    out = (build.buffer(n, channels + 2 * offset, *size), offset)
    build.step("sum", [(*p, *mode) for p, mode in zip(places, modes, strict=True)], out, channels, relu)
    build.step("output", out, channels, 0)
    return build.run(xs, [torch.empty(n, channels, *size)], threads)[0]


def direct(xs: Sequence[Tensor], size: tuple[int, int], modes: Sequence[tuple[str, bool]], relu: bool) -> Tensor:
    total: Any = None
    for x, (mode, align) in zip(xs, modes, strict=True):
        align_corners = align if mode == "bilinear" else None
        term = x if mode == "identity" else F.interpolate(x, size, mode=mode, align_corners=align_corners)
        total = term if total is None else total + term
    return total.relu() if relu else total  # type: ignore[no-any-return]


RATIOS = [((5, 7), (17, 13)), ((5, 7), (65, 97)), ((17, 13), (5, 7)), ((8, 6), (16, 12)), ((1, 1), (4, 3))]


@DTYPES
@pytest.mark.parametrize(("size", "to"), [*RATIOS, ((6, 9), (1, 1))])
@pytest.mark.parametrize("mode", MODES)
def test_resampling(dtype: torch.dtype, size: tuple[int, int], to: tuple[int, int], mode: tuple[str, bool]) -> None:
    for channels in (1, 3, 18, 48):
        x = drawn(dtype, 2, channels, *size)
        given = summed([x], to, [mode], False, dtype)
        assert_as_good(given, direct([x.to(dtype)], to, [mode], False), direct([x.double()], to, [mode], False), dtype)
        if mode[0] == "nearest":
            assert torch.equal(given, direct([x], to, [mode], False))


@DTYPES
@pytest.mark.parametrize("channels", [1, 3, 18, 48, 256, 2500])
@pytest.mark.parametrize("terms", [1, 2, 3, 8])
@pytest.mark.parametrize("relu", [False, True])
def test_sums(dtype: torch.dtype, channels: int, terms: int, relu: bool) -> None:
    modes = ([("identity", False), *MODES] * 2)[:terms]
    xs = [
        drawn(dtype, 1, channels, *((9, 7) if mode == "identity" else (3, 2 + k))) for k, (mode, _) in enumerate(modes)
    ]
    given = summed(xs, (9, 7), modes, relu, dtype, offset=terms % 3)
    exact = direct([x.double() for x in xs], (9, 7), modes, relu)
    assert_as_good(given, direct([x.to(dtype) for x in xs], (9, 7), modes, relu), exact, dtype)


@DTYPES
def test_what_is_not_finite_survives(dtype: torch.dtype) -> None:
    x = drawn(dtype, 1, 20, 6, 5)
    x[0, 0, 1, 2], x[0, 7, 0, 0], x[0, 19, 5, 4] = float("nan"), float("inf"), float("-inf")
    for mode in [("identity", False), ("nearest", False)]:
        given = summed([x], (6, 5), [mode], True, dtype)
        assert torch.equal(given.isnan(), x.isnan())
        assert torch.equal(given.nan_to_num(), x.relu().nan_to_num())
    given = summed([x], (12, 10), [("bilinear", False)], True, dtype)
    assert torch.equal(given.isnan(), direct([x], (12, 10), [("bilinear", False)], True).isnan())


@DTYPES
@pytest.mark.parametrize("channels", [1, 18, 2500])
@pytest.mark.parametrize(("size", "window"), [((8, 6), 2), ((7, 9), 2), ((11, 7), 3), ((5, 4), 1)])
def test_means(dtype: torch.dtype, channels: int, size: tuple[int, int], window: int) -> None:
    x = drawn(dtype, 2, channels, *size)
    exact = F.avg_pool2d(x.double(), window)
    build = Builder(dtype)
    source, out = build.load(0, x, 1, 1), (build.buffer(2, channels + 3, *exact.shape[2:]), 2)
    build.step("avg_pool", source, out, channels, window)
    build.step("output", out, channels, 0)
    (given,) = build.run([x], [torch.empty(exact.shape)])
    assert_as_good(given, F.avg_pool2d(x.to(dtype), window), exact, dtype)


def chain(build: Builder, n: int = 2, size: tuple[int, int] = (19, 23)) -> Callable[[Tensor], list[Tensor]]:
    """Convolutions, a sum over its own term and maps of other geometry in the same memory; the same in PyTorch."""
    half = tuple((s + 1) // 2 for s in size)
    shapes = [(8, 3, 3, 3), (24, 8, 3, 3), (8, 24, 1, 1)]
    weights = [drawn(build.dtype, *s) / s[1] for s in shapes]
    settings = zip(weights, (1, 2, 1), ((0, 8), (4, 24), (0, 0)), strict=True)
    packed = [
        _C.PackedConv(cpu_executor.DTYPES[build.dtype], w, torch.ones(len(w)), *rest, False) for w, *rest in settings
    ]
    first = build.buffer(n, 16, *size)
    second = build.buffer(n, 8, *size)
    third = build.buffer(n, 24, *half, at=0)  # over the first, which is not read any more
    fourth = build.buffer(n, 8, *half)
    build.step("input", (first, 5), 0, 3, None, None)
    build.step("conv", packed[0], (first, 5), (second, 0), None)
    build.step("conv", packed[1], (second, 0), (third, 0), None)
    build.step("conv", packed[2], (third, 0), (fourth, 0), None)
    build.step("sum", [(second, 0, "identity", False), (fourth, 0, "bilinear", True)], (second, 0), 8, True)
    build.step("conv", packed[1], (second, 0), (third, 0), (third, 0))
    build.program.output(build.wave, (third, 0), 24, 0)
    build.program.output(build.wave, (second, 0), 8, 1)

    def plain(x: Tensor) -> list[Tensor]:
        a, b, c = (w.to(x.dtype) for w in weights)
        one = F.conv2d(x, a, torch.ones(8).to(x), padding=1).relu()

        def strides(y: Tensor) -> Tensor:
            return F.conv2d(y, b, torch.ones(24).to(x), 2, 1)

        def partly(y: Tensor) -> Tensor:
            return torch.cat([y[:, :4], y[:, 4:].relu()], 1)

        two = partly(strides(one))
        low = F.conv2d(two, c, torch.ones(8).to(x))
        one = (one + F.interpolate(low, size, mode="bilinear", align_corners=True)).relu()
        return [partly(strides(one) + two), one]

    return plain


def results(n: int, size: tuple[int, int] = (19, 23)) -> list[Tensor]:
    return [torch.empty(n, 24, *((s + 1) // 2 for s in size)), torch.empty(n, 8, *size)]


@DTYPES
@pytest.mark.parametrize("n", [0, 1, 3])
def test_maps_of_other_geometry_in_the_same_memory(dtype: torch.dtype, n: int) -> None:
    build = Builder(dtype)
    plain = chain(build, n)
    x = drawn(dtype, n, 3, 19, 23)
    given = build.run([x], results(n))
    if n:
        for a, b, c in zip(given, plain(x.to(dtype)), plain(x.double()), strict=True):
            assert_as_good(a, b, c, dtype)


@DTYPES
def test_teams_of_every_size_agree(dtype: torch.dtype) -> None:
    build = Builder(dtype)
    chain(build, 3)
    x = drawn(dtype, 3, 3, 19, 23)
    alone = build.run([x], results(3))
    for threads in (2, 5, 2, 1):
        for a, b in zip(build.again([x], results(3), threads), alone, strict=True):
            assert torch.equal(a, b)


def test_callers_side_by_side() -> None:
    build = Builder(torch.float32)
    chain(build)
    xs = [torch.randn(2, 3, 19, 23) for _ in range(2)]
    alone = [build.run([xs[0]], results(2)), build.again([xs[1]], results(2))]
    wrong: list[int] = []

    def call(k: int) -> None:
        for _ in range(20):
            wrong.extend(
                k for a, b in zip(build.again([xs[k]], results(2), 2), alone[k], strict=True) if not a.equal(b)
            )

    threads = [threading.Thread(target=call, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.slow
@pytest.mark.processes
def test_a_team_smaller_than_asked_for() -> None:
    code = "import torch, test_program as t; torch.manual_seed(0); t.test_teams_of_every_size_agree(torch.float32)"
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parent), *sys.path])
    environment = os.environ | {"OMP_THREAD_LIMIT": "2", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


@DTYPES
def test_profile_lists_every_step(dtype: torch.dtype) -> None:
    build = Builder(dtype)
    chain(build)
    x = drawn(dtype, 2, 3, 19, 23)
    alone, again = build.run([x], results(2)), results(2)
    times = build.program.profile([x], again, torch.full((build.bytes + 64,), 255, dtype=torch.uint8), 2)
    assert [step for step, _ in times] == list(range(build.program.steps)) == list(range(8))
    assert build.program.waves == 7
    assert all(seconds > 0 for _, seconds in times)
    assert all(torch.equal(a, b) for a, b in zip(again, alone, strict=True))
