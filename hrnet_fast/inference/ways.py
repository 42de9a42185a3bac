"""Ways to compute one convolution step with operators that exist: the library's, fused ones of cuDNN and oneDNN, ours.

Which is fastest depends on the shape and the device; :class:`Chooser` measures it. All compute the same: one that
differs from the library's plain convolution by more than rounding is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.errors import ImplementationError
from hrnet_fast.implementations import OPERATORS, choose
from hrnet_fast.inference.choices import Choice, key_for
from hrnet_fast.inference.choices import choose as measure
from hrnet_fast.inference.handed import Folded
from hrnet_fast.inference.plan import Conv, Plan
from hrnet_fast.inference.sums import fuse

# Relative L2 distance between two right results: rounding of the inputs, the sums and the result.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_TF32 = 4e-3


@dataclass(frozen=True)
class Geometry:
    """What decides which way is fastest.

    Attributes:
        source, out: [N, C, H, W] of what is read and made.
        pitches: channels from one pixel to the next in the source's and the result's buffers.
        kernel, stride, relu: as in :class:`~hrnet_fast.inference.plan.Conv`.
        residual: whether there is one.
        over: whether the result lies where the residual did.
        adoptable: whether the result may be a tensor of the library's own.
    """

    source: tuple[int, int, int, int]
    out: tuple[int, int, int, int]
    pitches: tuple[int, int]
    kernel: int
    stride: int
    relu: tuple[int, int]
    residual: bool
    over: bool
    adoptable: bool

    @property
    def whole(self) -> bool:
        """Whether the ReLU is on all channels or none."""
        return self.relu[0] >= self.relu[1] or self.relu == (0, self.out[1])

    @property
    def activated(self) -> bool:
        return self.relu[0] < self.relu[1]

    def __str__(self) -> str:
        source, out = ("x".join(map(str, s)) for s in (self.source, self.out))
        extras = f" relu[{self.relu[0]}:{self.relu[1]}]" * self.activated + " + residual" * self.residual
        places = f" @{self.pitches[0]},{self.pitches[1]}" + " over" * self.over + " own" * self.adoptable
        return f"conv{self.kernel}x{self.kernel}/{self.stride} {source} -> {out}{extras}{places}"


def geometry(plan: Plan, step: Conv, adoptable: bool) -> Geometry:
    """Return a convolution step's geometry."""
    pitches = (plan.buffers[step.source.buffer].channels, plan.buffers[step.out.buffer].channels)
    over = step.residual is not None and step.residual == step.out
    return Geometry(
        plan.shape(step.source), plan.shape(step.out), pitches, step.kernel, step.stride, step.relu,
        step.residual is not None, over, adoptable,
    )  # fmt: skip


class Way:
    """One way. `fresh` says that it returns new tensors, and would have to copy them into a given place."""

    name: ClassVar[str]

    def why_not(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it does not apply, or None."""
        return None

    def fresh(self, g: Geometry) -> bool:
        return True

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        """Return the step's result: `out`, written to, or another tensor. `out` may be the residual."""
        raise NotImplementedError


class Library(Way):
    """The library's convolution, then pointwise operations that write where the result belongs."""

    name = "library"

    def fresh(self, g: Geometry) -> bool:
        return not g.activated and not g.residual

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        made = F.conv2d(x, w.weight, w.bias, g.stride, g.kernel // 2)
        begin, end = g.relu
        if residual is not None:
            # Whether it is written over or not, every element is read before its place is written.
            result = made.add_(residual) if out is None else torch.add(made, residual, out=out)
            if g.activated:
                result[:, begin:end].relu_()
            return result
        if out is None or not g.activated:
            if g.activated:
                made[:, begin:end].relu_()
            return made
        if begin > 0:
            out[:, :begin].copy_(made[:, :begin])
        if end < made.shape[1]:
            out[:, end:].copy_(made[:, end:])
        torch.clamp_min(made[:, begin:end], 0, out=out[:, begin:end])
        return out


class CudnnFused(Way):
    """cuDNN's convolution with bias, residual and ReLU in its epilogue."""

    name = "cudnn_fused"

    def why_not(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or dtype == torch.float64:
            return "only on CUDA, not in float64"
        return None if g.activated and g.whole else "its ReLU is on all channels"

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        stride, pad = [g.stride] * 2, [g.kernel // 2] * 2
        if residual is None:
            return torch.cudnn_convolution_relu(x, w.weight, w.bias, stride, pad, [1, 1], 1)
        return torch.cudnn_convolution_add_relu(x, w.weight, residual, 1.0, w.bias, stride, pad, [1, 1], 1)


class ThenSum(Way):
    """The library's convolution without bias, then our sum: bias, residual and ReLU in one pass."""

    name = "library_then_fuse_sum"

    def why_not(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or not g.whole:
            return "only on CUDA, with a ReLU on all channels or none"
        return lacks("fuse_sum", device, dtype)

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        made = F.conv2d(x, w.weight, None, g.stride, g.kernel // 2)
        xs = [made] if residual is None else [made, residual]
        return fuse(xs, (w.one, w.shift), g.out[2:], "nearest", False, g.activated)


class OneDnn(Way):
    """oneDNN's convolution on CPUs, on a weight in its own layout, with the epilogue."""

    name = "onednn"

    def why_not(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            return "only on CPUs, in float32 and bfloat16"
        onednn: Any = torch.backends.mkldnn
        if not onednn.is_available() or not onednn.enabled:
            return "PyTorch has no oneDNN here"
        return "no empty maps" if 0 in g.source or 0 in g.out else None

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        ops = torch.ops.mkldnn
        stride, pad = [g.stride] * 2, [g.kernel // 2] * 2
        weight = w.reordered(g.source, g.stride)
        attr = "relu" if g.activated and g.whole else None
        if residual is None:
            made: Tensor = ops._convolution_pointwise(x, weight, w.bias, pad, stride, [1, 1], 1, attr or "none", [], "")
        else:
            # In place only where the plan lets the result lie over the residual.
            last = residual.is_contiguous(memory_format=torch.channels_last)
            binary = ops._convolution_pointwise_.binary if g.over and last else ops._convolution_pointwise.binary
            first = (residual, x) if g.over and last else (x, residual)
            made = binary(*first, weight, w.bias, pad, stride, [1, 1], 1, "add", None, attr, [], "")
            if g.over and last:
                made = residual if out is None else out
        if not g.whole:
            made[:, g.relu[0] : g.relu[1]].relu_()
        return made


class Strided(Way):
    """This project's kernel for 3x3 convolutions of stride 2."""

    name = "strided_conv_chain"

    def why_not(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or (g.kernel, g.stride) != (3, 2):
            return "only on CUDA, for 3x3 of stride 2"
        return lacks("strided_conv_chain", device, dtype)

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        from hrnet_fast.kernels.triton.strided_conv_chain import forward

        relu = g.relu if g.activated else (0, 0)
        return forward([x], w.weight, w.bias, residual, relu, True)


class Grouped(Way):
    """This project's kernel for the branches' 3x3 convolutions, with one branch."""

    name = "grouped_conv3x3"

    def why_not(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or (g.kernel, g.stride) != (3, 1) or not g.whole:
            return "only on CUDA, for 3x3 of stride 1 with a ReLU on all channels or none"
        return lacks("grouped_conv3x3", device, dtype)

    def run(self, g: Geometry, w: Folded, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        return w.group()([x], [residual], g.activated)[0]


WAYS: dict[str, Way] = {w.name: w for w in (CudnnFused(), OneDnn(), Library(), ThenSum(), Strided(), Grouped())}


def lacks(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why there is no fast implementation of an operator here, or None."""
    if not any(operator in names for names in OPERATORS.values()):
        return f"{operator} is not there"
    if choose(operator, "auto", torch.empty(0, dtype=dtype, device=device)) == "reference":
        return f"no fast {operator} for {dtype} on {device}"
    return None


class Chooser:
    """Chooses ways for one device and dtype, once for each geometry.

    Args:
        device, dtype: of the maps.
        prefer: name of the way to take wherever it applies, unmeasured; None measures.
        budget: seconds of measuring altogether; geometries that come later take the first way that applies.
        wrap: makes what is timed of a call; on CUDA, a graph of several calls, as launches from the host take longer
            than small kernels do.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        prefer: str | None = None,
        budget: float = 10.0,
        wrap: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None,
    ) -> None:
        if prefer is not None and prefer not in WAYS:
            raise ImplementationError(f"{prefer!r} is no way of a convolution; there are {', '.join(WAYS)}.")
        self.device, self.dtype, self.prefer, self.budget, self._wrap = device, dtype, prefer, budget, wrap
        self.choices: dict[Geometry, Choice] = {}

    def way(self, g: Geometry, weights: Folded) -> Way:
        """Return the way for a geometry. `weights` are what it would run with."""
        if g not in self.choices:
            self.choices[g] = self._choose(g, weights)
        return WAYS[self.choices[g].winner]

    def _choose(self, g: Geometry, weights: Folded) -> Choice:
        able = [name for name, way in WAYS.items() if way.why_not(g, self.device, self.dtype) is None]
        if self.prefer is not None or 0 in g.out:
            return Choice(str(g), self.prefer if self.prefer in able else Library.name)
        if len(able) == 1:
            return Choice(str(g), able[0])
        if self.budget <= 0:
            return Choice(str(g), able[0], reasons={"others": "not measured: the time for measuring was spent"})
        tf32 = torch.backends.cudnn.allow_tf32 if self.device.type == "cuda" else False
        key = key_for(f"convolution {g}", f"tf32={tf32}", device=self.device, dtype=self.dtype)
        start = time.perf_counter()
        try:
            return measure(key, self._candidates(g, weights, able), time=0.2, device=self.device)
        finally:
            self.budget -= time.perf_counter() - start

    def _candidates(self, g: Geometry, weights: Folded, able: list[str]) -> Mapping[str, Callable[[], Any]]:
        """Calls of each way on random maps with the step's own strides, copies into place included."""
        made: list[tuple[Tensor, Tensor, Tensor]] = []

        def maps() -> tuple[Tensor, Tensor, Tensor]:  # lazily: what is remembered needs none
            if not made:
                x = self._map(g.source, g.pitches[0])
                made.append((x, self._map(g.out, g.out[1]), self._map(g.out, g.pitches[1])))
            return made[0]

        def call(way: Way) -> None:
            x, residual, out = maps()
            place = None if g.adoptable and way.fresh(g) else out
            before = (out if g.over else residual) if g.residual else None
            result = way.run(g, weights, x, before, place)
            if place is not None and result is not place:
                place.copy_(result)

        return {name: _Candidate(self, WAYS[name], call, maps, g, weights) for name in able}

    def _map(self, shape: tuple[int, int, int, int], pitch: int) -> Tensor:
        n, c, h, w = shape
        whole = torch.randn(n, h, w, pitch, device=self.device).to(self.dtype)
        return whole.permute(0, 3, 1, 2)[:, :c]

    def wrapped(self, call: Callable[[], Any]) -> Callable[[], Any]:
        return call if self._wrap is None else self._wrap(call)

    @property
    def tolerance(self) -> float:
        tf32 = self.device.type == "cuda" and self.dtype == torch.float32
        return _TF32 if tf32 else TOLERANCES[self.dtype]


class _Candidate:
    """A way as it is timed: its first call proves that it computes the same as the library."""

    def __init__(
        self,
        chooser: Chooser,
        way: Way,
        call: Callable[[Way], None],
        maps: Callable[[], tuple[Tensor, Tensor, Tensor]],
        g: Geometry,
        weights: Folded,
    ) -> None:
        self._chooser, self._way, self._plain, self._maps, self._g, self._weights = chooser, way, call, maps, g, weights
        self._ready: Callable[[], Any] | None = None

    def __call__(self) -> None:
        if self._ready is None:
            self._prove()
            self._ready = self._chooser.wrapped(lambda: self._plain(self._way))
        self._ready()

    def _prove(self) -> None:
        x, residual, _ = self._maps()
        given = [residual.clone() if self._g.residual else None for _ in range(2)]
        expected = WAYS[Library.name].run(self._g, self._weights, x, given[0], None).double()
        actual = self._way.run(self._g, self._weights, x, given[1], None).double()
        error = ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()
        if not error <= self._chooser.tolerance:
            raise ImplementationError(f"differs from the library's result by {error:.1e}")
