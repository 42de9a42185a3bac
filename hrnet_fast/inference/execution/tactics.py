"""Tactics: implementations of a convolution step by PyTorch, cuDNN, oneDNN and this package's operators.

The fastest depends on shape and device; :mod:`hrnet_fast.inference.execution.autotuner` measures it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hrnet_fast.implementations import select_implementation
from hrnet_fast.inference.execution.sums import fuse
from hrnet_fast.inference.execution.weight_store import FoldedWeight
from hrnet_fast.inference.plan import Plan
from hrnet_fast.inference.steps import ConvStep
from hrnet_fast.ops.primitives import strided_conv_chain_forward, wrong_in_bfloat16


@dataclass(frozen=True)
class Geometry:
    """What decides which tactic of a convolution step is fastest.

    Attributes:
        source, out: [N, C, H, W] of input and result.
        pitches: channels from one pixel to the next in the buffers of input and result.
        kernel, stride, relu: as in :class:`~hrnet_fast.inference.steps.ConvStep`.
        residual: whether there is one.
        over: whether the result overwrites the residual.
        adoptable: whether the result's buffer can adopt a new tensor.
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


def geometry(plan: Plan, step: ConvStep, adoptable: bool) -> Geometry:
    """Return a convolution step's geometry."""
    pitches = (plan.buffers[step.source.buffer].channels, plan.buffers[step.out.buffer].channels)
    over = step.residual is not None and step.residual == step.out
    return Geometry(
        plan.shape(step.source), plan.shape(step.out), pitches, step.kernel, step.stride, step.relu,
        step.residual is not None, over, adoptable,
    )  # fmt: skip


class Tactic:
    """An implementation of a convolution step.

    Attributes:
        name: of the tactic.
        operator: the operator of this package that it calls, or None.
    """

    name: ClassVar[str]
    operator: ClassVar[str | None] = None

    def unsupported_reason(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why it does not apply, or None."""
        return None

    def fresh(self, g: Geometry) -> bool:
        """Whether it returns a new tensor, which would have to be copied to a given place."""
        return True

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        """Return the step's result: `out`, written to, or another tensor. `out` may be the residual."""
        raise NotImplementedError


class Library(Tactic):
    """PyTorch's convolution, then pointwise operations that write to the result's place."""

    name = "library"

    def fresh(self, g: Geometry) -> bool:
        return not g.activated and not g.residual

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        if wrong_in_bfloat16(x, g.kernel, g.stride):
            made = F.conv2d(x.float(), w.weight.float(), w.shift, g.stride, g.kernel // 2).to(x.dtype)
        else:
            made = F.conv2d(x, w.weight, w.bias, g.stride, g.kernel // 2)
        begin, end = g.relu
        if residual is not None:
            # Pointwise: safe where the result overwrites the residual.
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


class CudnnFused(Tactic):
    """cuDNN's convolution with bias, residual and ReLU in its epilogue."""

    name = "cudnn_fused"

    def unsupported_reason(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or dtype == torch.float64:
            return "only on CUDA, not in float64"
        return None if g.activated and g.whole else "its ReLU is on all channels"

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        stride, pad = [g.stride] * 2, [g.kernel // 2] * 2
        if residual is None:
            return torch.cudnn_convolution_relu(x, w.weight, w.bias, stride, pad, [1, 1], 1)
        return torch.cudnn_convolution_add_relu(x, w.weight, residual, 1.0, w.bias, stride, pad, [1, 1], 1)


class ThenFuseSum(Tactic):
    """PyTorch's convolution without bias, then ``fuse_sum`` for bias, residual and ReLU in one pass."""

    name = "library_then_fuse_sum"
    operator = "fuse_sum"

    def unsupported_reason(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or not g.whole:
            return "only on CUDA, with a ReLU on all channels or none"
        return operator_unsupported_reason("fuse_sum", device, dtype)

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        made = F.conv2d(x, w.weight, None, g.stride, g.kernel // 2)
        xs = [made] if residual is None else [made, residual]
        return fuse(xs, (w.one, w.shift), g.out[2:], "nearest", False, g.activated)


class OneDnn(Tactic):
    """oneDNN's convolution with an epilogue on CPUs, on a weight in oneDNN's layout."""

    name = "onednn"

    def unsupported_reason(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            return "only on CPUs, in float32 and bfloat16"
        onednn: Any = torch.backends.mkldnn
        if not onednn.is_available() or not onednn.enabled:
            return "PyTorch has no oneDNN here"
        if dtype == torch.bfloat16 and g.stride > 1 and g.out[-1] == 1:
            return "in bfloat16 it is wrong over one column of results"
        return "no empty maps" if 0 in g.source or 0 in g.out else None

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        ops = torch.ops.mkldnn
        stride, pad = [g.stride] * 2, [g.kernel // 2] * 2
        weight = w.reordered(g.source, g.stride)
        attr = "relu" if g.activated and g.whole else None
        if residual is None:
            made: Tensor = ops._convolution_pointwise(x, weight, w.bias, pad, stride, [1, 1], 1, attr or "none", [], "")
        else:
            # In place only where the plan lets the result overwrite the residual.
            last = residual.is_contiguous(memory_format=torch.channels_last)
            binary = ops._convolution_pointwise_.binary if g.over and last else ops._convolution_pointwise.binary
            first = (residual, x) if g.over and last else (x, residual)
            made = binary(*first, weight, w.bias, pad, stride, [1, 1], 1, "add", None, attr, [], "")
            if g.over and last:
                made = residual if out is None else out
        if not g.whole:
            made[:, g.relu[0] : g.relu[1]].relu_()
        return made


class Strided(Tactic):
    """``strided_conv_chain``: 3x3 convolutions of stride 2 with bias, residual and ReLU on any range of channels."""

    name = operator = "strided_conv_chain"

    def unsupported_reason(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or (g.kernel, g.stride) != (3, 2):
            return "only on CUDA, for 3x3 of stride 2"
        return operator_unsupported_reason("strided_conv_chain", device, dtype)

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        relu = g.relu if g.activated else (0, 0)
        return strided_conv_chain_forward([x], w.weight, w.bias, residual, *relu, "auto")


class Grouped(Tactic):
    """``grouped_conv3x3`` with one branch."""

    name = operator = "grouped_conv3x3"

    def unsupported_reason(self, g: Geometry, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cuda" or (g.kernel, g.stride) != (3, 1) or not g.whole:
            return "only on CUDA, for 3x3 of stride 1 with a ReLU on all channels or none"
        return operator_unsupported_reason("grouped_conv3x3", device, dtype)

    def run(self, g: Geometry, w: FoldedWeight, x: Tensor, residual: Tensor | None, out: Tensor | None) -> Tensor:
        return w.group()([x], [residual], g.activated)[0]


TACTICS: dict[str, Tactic] = {
    t.name: t for t in (CudnnFused(), OneDnn(), Library(), ThenFuseSum(), Strided(), Grouped())
}


def operator_unsupported_reason(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why there is no fast implementation of an operator here, or None."""
    if select_implementation(operator, "auto", torch.empty(0, dtype=dtype, device=device)) == "reference":
        return f"no fast {operator} for {dtype} on {device}"
    return None
