"""The inference engine's convolutions on maps with a halo of zeros, kernel by kernel, against float64 ``conv2d``.

A program of one convolution runs in memory full of NaN: channels beside a slice, slack and outputs, on which no kernel
depends. What a kernel writes outside of its output is found behind it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from hrnet_fast.implementations import describe

if not describe("cpu").usable:
    pytest.skip(describe("cpu").reason, allow_module_level=True)

from hrnet_fast import _C

ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}
DTYPES = list(ROUNDING)
CHANNELS = [1, 3, 17, 18, 32, 36, 48, 64, 72, 100, 256]
PAIRS = list(zip(CHANNELS, CHANNELS[3:] + CHANNELS[:3], strict=True))
SIZES = [(1, 1), (1, 7), (8, 6), (9, 7), (33, 31)]


def picked(dtype: torch.dtype) -> str:
    name: str = _C.conv_kernel(name_of(dtype))
    return name


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def kernels() -> list[Any]:
    """Every kernel in every dtype; one skip names those whose instructions this processor lacks."""
    params = []
    # Matrix units multiply bfloat16 only.
    for kernel, dtypes in (("amx", DTYPES[1:]), ("avx512", DTYPES), ("portable", DTYPES)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HRNET_FAST_CPU_KERNEL", kernel)
            for dtype in dtypes:
                has = picked(dtype)
                marks = pytest.mark.unavailable(f"{kernel} is asked for; this processor has {has}")
                marks = () if has == kernel else marks
                params.append(pytest.param((kernel, dtype), id=f"{kernel}-{dtype}", marks=marks))
    return params


@pytest.fixture(params=kernels())
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """A dtype, computed by the kernel that is asked for."""
    kernel, asked = request.param
    monkeypatch.setenv("HRNET_FAST_CPU_KERNEL", kernel)
    assert picked(asked) == kernel
    given: torch.dtype = asked
    return given


def make(
    dtype: torch.dtype, n: int, channels: tuple[int, int], size: tuple[int, int], k: int, stride: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, weight, bias and residual, of values that `dtype` holds."""
    height, width = ((s - 1) // stride + 1 for s in size)
    x = torch.randn(n, channels[0], *size).to(dtype)
    weight = (torch.randn(channels[1], channels[0], k, k) / math.sqrt(channels[0] * k * k)).to(dtype)
    return x, weight, torch.randn(channels[1]).to(dtype), torch.randn(n, channels[1], height, width).to(dtype)


def direct(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, relu: tuple[int, int]
) -> Tensor:
    """PyTorch's convolution in the dtype of its arguments; sum and ReLU too."""
    out = conv2d(x, weight, bias, stride, padding=weight.shape[2] // 2)
    out = out if residual is None else out + residual
    begin, end = relu
    return torch.cat([out[:, :begin], out[:, begin:end].relu(), out[:, end:]], dim=1)


def halo(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    stride: int = 1,
    relu: tuple[int, int] = (0, 0),
    padding: int = 0,
) -> Tensor:
    """The program's result. With `padding`, every map is a slice of one wider by that many channels."""
    kind, given = name_of(x.dtype), [x] if residual is None else [x, residual]
    out = torch.empty(len(x), len(weight), *((s - 1) // stride + 1 for s in x.shape[2:]), dtype=x.dtype)
    packed = _C.PackedConv(kind, weight.float().contiguous(), bias.float(), stride, relu, padding == 0)
    program, places, size = _C.Program(kind), [], 0
    for n, channels, height, width in (out.shape, *(t.shape for t in given)):
        places.append((program.buffer(size, n, height, width, channels + padding), padding // 2))
        size += _C.map_bytes(kind, n, height, width, channels + padding)
    for k, tensor in enumerate(given):
        program.input(0, places[1 + k], k, tensor.shape[1], None, None)
    program.conv(1, packed, places[1], places[0], places[2] if residual is not None else None)
    program.output(2, places[0], len(weight), 0)
    program.finish(size)
    arena = torch.full((size + 63,), 0xFF, dtype=torch.uint8)
    program.run(given, [out], arena, torch.get_num_threads())
    check_intact(arena, out, padding)
    return out


def check_intact(arena: Tensor, out: Tensor, padding: int) -> None:
    """Around the output, which is first in the arena, are zeros in its halo, and NaN in what is not its own."""
    n, channels, height, width = out.shape
    first, wide, begin = -arena.data_ptr() % 64, channels + padding, padding // 2
    lead, images = width + 2, n * (height + 1) * (width + 1)
    room = (lead + images + 16 + width + 2) * wide * out.itemsize
    pixels = arena[first : first + room].view(out.dtype).view(-1, wide)
    assert torch.cat([pixels[:, :begin], pixels[:, begin + channels :]], dim=1).isnan().all()
    assert pixels[lead + images :].isnan().all()
    own = pixels[lead : lead + images, begin : begin + channels].view(n, height + 1, width + 1, channels)
    assert own[:, height].eq(0).all()
    assert own[:, :, width].eq(0).all()


def check(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, relu: tuple[int, int], padding: int
) -> None:
    """At most twice the error of PyTorch's own convolution, and one rounding, as L2 norms: a maximum is one draw."""
    out = halo(x, weight, bias, residual, stride, relu, padding)
    added = None if residual is None else residual.double()
    exact = direct(x.double(), weight.double(), bias.double(), added, stride, relu)
    theirs = direct(x, weight, bias, residual, stride, relu)
    assert out.dtype == x.dtype
    assert out.shape == exact.shape
    budget = 2 * (theirs.double() - exact).norm() + ROUNDING[x.dtype] * exact.norm()
    assert (out.double() - exact).norm() <= budget


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("channels", PAIRS, ids=str)
def test_channels(dtype: torch.dtype, channels: tuple[int, int], k: int, stride: int) -> None:
    """The padding is a distance in memory that no loop depends on: one for each epilogue."""
    x, weight, bias, residual = make(dtype, 3, channels, (9, 7), k, stride)
    check(x, weight, bias, None, stride, (0, 0), 32)
    check(x, weight, bias, residual, stride, (0, channels[1]), 7)
    check(x, weight, bias, residual, stride, (channels[1] // 3, channels[1] // 2 + 1), 0)


@pytest.mark.parametrize("out", range(17, 32))
def test_channels_behind_a_vector(dtype: torch.dtype, out: int) -> None:
    """The few channels behind the last full vector may have code of their own."""
    for stride in (1, 2):
        for channels, padding in ((24, 0), (65, 5)):
            x, weight, bias, residual = make(dtype, 2, (channels, out), (9, 7), 3, stride)
            check(x, weight, bias, residual, stride, (out - 1, out), padding)


@pytest.mark.parametrize(("n", "padding"), [(1, 0), (3, 6)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(dtype: torch.dtype, size: tuple[int, int], k: int, stride: int, padding: int, n: int) -> None:
    for channels in ((3, 64), (18, 40), (64, 17)):
        check(*make(dtype, n, channels, size, k, stride), stride, (1, channels[1] - 1), padding)


@pytest.mark.parametrize("stride", [1, 2])
def test_wide_rows(dtype: torch.dtype, stride: int) -> None:
    """Several strips in a row, of full and of shorter length."""
    for width in (32, 34, 63, 96, 129):
        check(*make(dtype, 2, (18, 36), (5, width), 3, stride), stride, (0, 36), 0)


def test_empty_batch(dtype: torch.dtype) -> None:
    x, weight, bias, residual = make(dtype, 0, (18, 36), (8, 6), 3, 1)
    assert halo(x, weight, bias, residual).shape == (0, 36, 8, 6)


def test_any_strides(dtype: torch.dtype) -> None:
    x, weight, bias, residual = make(dtype, 2, (18, 36), (8, 6), 3, 1)
    out = halo(x, weight, bias, residual)
    last = x.contiguous(memory_format=torch.channels_last)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(halo(last, weight, bias, residual), out)
    assert torch.equal(halo(turned, weight.transpose(2, 3).contiguous().transpose(2, 3), bias, residual), out)


@pytest.mark.parametrize(("value", "padding"), [(math.nan, 0), (math.nan, 7), (math.inf, 0), (-math.inf, 7)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("channels", [(3, 64), (17, 32), (18, 36), (100, 17)], ids=str)
def test_what_is_not_finite_stays_in_its_windows(
    dtype: torch.dtype, channels: tuple[int, int], k: int, stride: int, padding: int, value: float
) -> None:
    """In each corner and inside; through the ReLU too. Where no window reaches it, nothing changes."""
    x, weight, bias, residual = make(dtype, 2, channels, (9, 7), k, stride)
    clean = halo(x, weight, bias, residual, stride, (0, channels[1]), padding)
    last = channels[0] - 1
    for n, c, y, x_ in ((0, 0, 0, 0), (0, last, 8, 6), (1, last, 0, 6), (1, 0, 8, 0), (1, 1, 4, 4)):
        spoilt = x.clone()
        spoilt[n, c, y, x_] = value
        mark = torch.zeros(2, 1, 9, 7)
        mark[n, 0, y, x_] = 1
        reached = conv2d(mark, torch.ones(1, 1, k, k), stride=stride, padding=k // 2) > 0
        out = halo(spoilt, weight, bias, residual, stride, (0, channels[1]), padding)
        assert torch.equal(torch.where(reached, 0, out), torch.where(reached, 0, clean))
        if math.isnan(value):
            assert out.isnan().all(1, keepdim=True).eq(reached).all()


def test_nan_in_the_residual_survives_the_relu(dtype: torch.dtype) -> None:
    x, weight, bias, residual = make(dtype, 1, (18, 36), (8, 6), 3, 1)
    residual[0, 35, 7, 5] = math.nan
    out = halo(x, weight, bias, residual, relu=(0, 36))
    assert torch.equal(out.isnan(), residual.isnan())


@pytest.mark.parametrize("channels", [(64, 64), (256, 40)], ids=str)
def test_many_items_on_threads(dtype: torch.dtype, channels: tuple[int, int]) -> None:
    """Items in any order and on any threads give the same numbers."""
    arguments = make(dtype, 2, channels, (40, 50), 3, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = halo(*arguments)
        torch.set_num_threads(4)
        assert torch.equal(halo(*arguments), alone)
    finally:
        torch.set_num_threads(before)


def test_a_lower_kernel_serves_where_the_asked_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRNET_FAST_CPU_KERNEL", "amx")
    assert picked(torch.float32) != "amx"
    monkeypatch.setenv("HRNET_FAST_CPU_KERNEL", "portable")
    assert {picked(d) for d in DTYPES} == {"portable"}
    monkeypatch.delenv("HRNET_FAST_CPU_KERNEL")
    order = ["portable", "avx512", "amx"]
    assert order.index(picked(torch.bfloat16)) <= len(order) - 1
