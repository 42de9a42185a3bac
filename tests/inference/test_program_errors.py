"""What a compiled program refuses, when it is built, finished and run; and weights that are set anew."""

from __future__ import annotations

from collections.abc import Callable
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


def weights(out: int = 4, into: int = 3, kernel: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(out, into, kernel, kernel), torch.randn(out)


def packed(stride: int = 1, relu: tuple[int, int] = (0, 0), dense: bool = False, dtype: str = "float32") -> Any:
    return _C.PackedConv(dtype, *weights(), stride, relu, dense)


def started() -> tuple[Any, int]:
    """A program with two maps of 3 and 6 channels, 8x10, and one 4x5 of 4; and the arena's bytes."""
    program, at = _C.Program("float32"), 0
    for shape in ((1, 8, 10, 3), (1, 8, 10, 6), (1, 4, 5, 4)):
        program.buffer(at, *shape)
        at += _C.map_bytes("float32", *shape)
    return program, at


BUILDING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "type": (lambda p: _C.Program("float64"), "float32 or bfloat16"),
    "unaligned buffer": (lambda p: p.buffer(32, 1, 2, 2, 2), "64"),
    "negative offset": (lambda p: p.buffer(-64, 1, 2, 2, 2), "64"),
    "empty buffer": (lambda p: p.buffer(0, 1, 0, 2, 2), "positive"),
    "endless buffer": (lambda p: p.buffer(0, 1, 2**31, 2**31, 2**31), "too large"),
    "no buffer": (lambda p: p.input(0, (9, 0), 0, 3, None, None), "buffer"),
    "channels outside": (lambda p: p.input(0, (0, 1), 0, 3, None, None), "channels"),
    "channels that wrap": (lambda p: p.sum(0, [(0, 0, "identity", False)], (0, 1), 2**63 - 1, False), "channels"),
    "place that wraps": (lambda p: p.input(0, (0, 2**63 - 1), 0, 3, None, None), "channels"),
    "buffer that wraps": (lambda p: [p.buffer(2**63 - 64, 1, 4, 4, 8), p.finish(4096)], "outside"),
    "late buffer": (lambda p: [p.finish(started()[1]), p.buffer(0, 1, 2, 2, 2)], "finished"),
    "residual beside": (lambda p: p.conv(0, packed(), (0, 0), (1, 0), (1, 1)), "over its input"),
    "term beside": (lambda p: p.sum(0, [(1, 1, "identity", False)], (1, 0), 3, False), "over its input"),
    "no channels": (lambda p: p.input(0, (0, 1), 0, 0, None, None), "channels"),
    "input below 0": (lambda p: p.input(0, (0, 0), -1, 3, None, None), "tensor"),
    "scales": (lambda p: p.input(0, (0, 0), 0, 3, [1.0], [1.0]), "scale"),
    "scale without shift": (lambda p: p.input(0, (0, 0), 0, 3, [1.0] * 3, None), "scale"),
    "wave back": (lambda p: [p.avg_pool(k, (1, 0), (2, 0), 4, 2) for k in (1, 0)], "ascending"),
    "wave below 0": (lambda p: p.avg_pool(-1, (1, 0), (2, 0), 4, 2), "ascending"),
    "conv's type": (lambda p: p.conv(0, packed(dtype="bfloat16"), (0, 0), (1, 0), None), "type"),
    "conv's sizes": (lambda p: p.conv(0, packed(), (0, 0), (2, 0), None), "sizes"),
    "conv's slice": (lambda p: p.conv(0, packed(dense=True), (1, 0), (1, 0), None), "input"),
    "conv's dense input": (lambda p: p.conv(0, packed(2, dense=True), (1, 0), (2, 0), None), "slice"),
    "conv over itself": (lambda p: p.conv(0, packed(), (1, 0), (1, 2), None), "over its input"),
    "residual": (lambda p: p.conv(0, packed(), (0, 0), (1, 0), (2, 0)), "residual"),
    "residual's channels": (lambda p: p.conv(0, packed(), (0, 0), (1, 0), (0, 0)), "residual"),
    "no terms": (lambda p: p.sum(0, [], (0, 0), 3, False), "eight"),
    "nine terms": (lambda p: p.sum(0, [(1, 0, "identity", False)] * 9, (0, 0), 3, False), "eight"),
    "mode": (lambda p: p.sum(0, [(1, 0, "bicubic", False)], (0, 0), 3, False), "bicubic"),
    "term's size": (lambda p: p.sum(0, [(2, 0, "identity", False)], (0, 0), 3, False), "size"),
    "sum over itself": (lambda p: p.sum(0, [(1, 0, "nearest", False)], (1, 1), 3, False), "over its input"),
    "window": (lambda p: p.avg_pool(0, (1, 0), (2, 0), 4, 0), "sizes"),
    "mean's sizes": (lambda p: p.avg_pool(0, (1, 0), (2, 0), 4, 3), "sizes"),
    "output below 0": (lambda p: p.output(0, (0, 0), 3, -1), "tensor"),
    "small arena": (lambda p: p.finish(started()[1] - 64), "outside"),
    "finished twice": (lambda p: [p.finish(started()[1]) for _ in range(2)], "finished"),
    "late step": (lambda p: [p.finish(started()[1]), p.output(0, (0, 0), 3, 0)], "finished"),
    "weight's shape": (lambda p: _C.PackedConv("float32", *weights(kernel=5), 1, (0, 0), False), "k of 1 or 3"),
    "weight's rank": (lambda p: _C.PackedConv("float32", torch.ones(3), torch.ones(3), 1, (0, 0), False), "weight"),
    "no outputs": (lambda p: _C.PackedConv("float32", *weights(0), 1, (0, 0), False), "weight"),
    "stride": (lambda p: packed(stride=3), "stride"),
    "ReLU": (lambda p: packed(relu=(0, 5)), "ReLU"),
    "bias": (lambda p: _C.PackedConv("float32", weights()[0], torch.ones(3), 1, (0, 0), False), "bias"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BUILDING))
def test_building(name: str) -> None:
    build, says = BUILDING[name]
    with pytest.raises(ValueError, match=says):
        build(started()[0])


def ready() -> tuple[Any, int]:
    program, size = started()
    program.input(0, (0, 0), 0, 3, None, None)
    program.conv(1, packed(relu=(0, 4)), (0, 0), (1, 0), None)
    program.output(2, (1, 0), 4, 0)
    program.finish(size)
    return program, size


X, OUT = torch.ones(1, 3, 8, 10), torch.empty(1, 4, 8, 10)
RUNNING: dict[str, tuple[list[Tensor], list[Tensor], str]] = {
    "no input": ([], [OUT], "input 0 is missing"),
    "no output": ([X], [], "output 0 is missing"),
    "shape": ([X[:, :, :7]], [OUT], "input 0 has another shape"),
    "images": ([torch.cat([X, X])], [OUT], "input 0 has another shape"),
    "channels": ([X[:, :2]], [OUT], "input 0 has another shape"),
    "rank": ([X[0]], [OUT], "four dimensions"),
    "dtype": ([X.double()], [OUT], "float32"),
    "integers": ([X.long()], [OUT], "float32"),
    "device": ([X.to("meta")], [OUT], "CPU"),
    "no memory": ([torch._efficientzerotensor((1, 3, 8, 10))], [OUT], "memory"),
    "sparse": ([X.to_sparse()], [OUT], "memory"),
    "negated": ([torch.complex(X, X).conj().imag], [OUT], "memory"),
    "bytes out": ([X], [torch.empty(1, 8, 10, 4, dtype=torch.uint8)], "bytes"),
    "output's shape": ([X], [OUT[:, :3]], "output 0 has another shape"),
    "output's dtype": ([X], [OUT.double()], "float32"),
}


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize("name", list(RUNNING))
def test_running(name: str, profiled: bool) -> None:
    inputs, outputs, says = RUNNING[name]
    program, size = ready()
    arena = torch.zeros(size + 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=says):
        (program.profile if profiled else program.run)(inputs, outputs, arena, 1)
    assert not arena.any()  # nothing ran


@pytest.mark.parametrize("profiled", [False, True])
def test_arenas_and_threads(profiled: bool) -> None:
    program, size = ready()
    run = program.profile if profiled else program.run
    short, floats = torch.zeros(size - 1, dtype=torch.uint8), torch.zeros(size + 64)
    gaps = torch.zeros(2 * size + 128, dtype=torch.uint8)[::2]
    for arena, says in ((short, "arena"), (floats, "bytes"), (gaps, "contiguous"), (short.to("meta"), "CPU")):
        with pytest.raises(ValueError, match=says):
            run([X], [OUT], arena, 1)
    with pytest.raises(ValueError, match="thread"):
        run([X], [OUT], torch.zeros(size + 64, dtype=torch.uint8), 0)


def test_not_finished() -> None:
    with pytest.raises(ValueError, match="finish"):
        started()[0].run([], [], torch.zeros(64, dtype=torch.uint8), 1)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_weights_set_anew(kernel: int, stride: int) -> None:
    size = (8, 10) if stride == 1 else (4, 5)
    pack = _C.PackedConv("float32", *weights(kernel=kernel), stride, (1, 4), True)
    program, at = started()
    program.buffer(at, 1, *size, 4)
    program.input(0, (0, 0), 0, 3, None, None)
    program.conv(1, pack, (0, 0), (3, 0), None)
    program.output(2, (3, 0), 4, 0)
    at += _C.map_bytes("float32", 1, *size, 4)
    program.finish(at)
    x, out = torch.randn(1, 3, 8, 10), torch.empty(1, 4, *size)
    for _ in range(2):
        weight, bias = weights(kernel=kernel)
        pack.set(weight, bias)
        program.run([x], [out], torch.full((at + 64,), 255, dtype=torch.uint8), 1)
        wanted = F.conv2d(x.double(), weight.double(), bias.double(), stride, kernel // 2)
        wanted[:, 1:] = wanted[:, 1:].relu()
        assert relative_l2(out, wanted) < 1e-6


WRONG = {
    "outputs": weights(out=5),
    "inputs": weights(into=2),
    "kernel": weights(kernel=1),
    "not square": (torch.ones(4, 3, 3, 1), torch.ones(4)),
    "rank": (torch.ones(4, 27), torch.ones(4)),
    "bias": (weights()[0], torch.ones(3)),
    "dtype": (weights()[0].double(), torch.ones(4)),
    "layout": (weights()[0].transpose(2, 3), torch.ones(4)),
    "device": (weights()[0].to("meta"), torch.ones(4)),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_weights_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match="PackedConv"):
        packed().set(*WRONG[name])
