"""The weight store: folded weights on a device, in the formats that operators take.

A refresh writes new values into the same storage, so that captured graphs stay valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hrnet_fast.inference.execution.cuda_graph import settle
from hrnet_fast.inference.weights import WeightSpec
from hrnet_fast.ops import PackedConv3x3, grouped_conv3x3, pack_grouped_conv3x3


class FoldedWeight:
    """A weight [O, C, k, k] and its bias, folded, on a device.

    Attributes:
        weight: channels-last, in the maps' dtype.
        bias: [O] in the maps' dtype.
        shift, one: [O] in float32 at least: the bias, and ones, as ``fuse_sum`` takes affines.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self.weight = weight.to(device, dtype, copy=True).contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(device, dtype, copy=True)
        self.shift = bias.to(device, wide, copy=True)
        self.one = torch.ones_like(self.shift)
        self._reordered: dict[tuple[tuple[int, ...], int], Tensor] = {}
        self._group: GroupedWeights | None = None

    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Write new values in place of the old ones."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.shift.copy_(bias)
        # Tensors in oneDNN's layouts cannot be written to. They exist on CPUs, where no graph refers to them.
        for shape, stride in list(self._reordered):
            del self._reordered[shape, stride]
            self.reordered(shape, stride)
        if self._group is not None:
            self._group.refresh()

    def reordered(self, shape: Sequence[int], stride: int) -> Tensor:
        """Return the weight in oneDNN's layout for inputs of `shape`."""
        key = (tuple(shape), stride)
        if key not in self._reordered:
            pad = [self.weight.shape[-1] // 2] * 2
            self._reordered[key] = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, pad, [stride] * 2, [1, 1], 1, list(shape)
            )
        return self._reordered[key]

    def group(self) -> GroupedWeights:
        """Return this weight alone as a group of one branch."""
        if self._group is None:
            self._group = GroupedWeights([self])
        return self._group


class GroupedWeights:
    """Packed weights of the convolutions of one ``grouped_conv3x3``."""

    def __init__(self, members: Sequence[FoldedWeight]) -> None:
        self._members = list(members)
        self._packed = self._pack()

    def _pack(self) -> PackedConv3x3:
        return pack_grouped_conv3x3([m.weight for m in self._members], [m.shift for m in self._members])

    def refresh(self) -> None:
        """Write the members' present values into the packed storage."""
        new = self._pack()
        self._packed.weight.copy_(new.weight)
        self._packed.bias.copy_(new.bias)

    def __call__(self, xs: Sequence[Tensor], residuals: Sequence[Tensor | None], relu: bool) -> list[Tensor]:
        """Return act(conv3x3(x_k) + bias_k + residual_k) of every branch."""
        added = list(residuals) if any(r is not None for r in residuals) else None
        return grouped_conv3x3(xs, self._packed, residuals=added, relu=relu)


class FusedSumWeights:
    """Weights of one ``upsample_conv1x1_sum``.

    Args:
        terms: for each term its convolution's weight and (begin, end) of the output channels that the sum reads; None
            for a term without convolution.

    Attributes:
        weights: views [C_out, C, 1, 1] of the convolutions' weights; None without convolution.
        bias: [C_out] in float32 at least, the sum of all biases.
    """

    def __init__(self, terms: Sequence[tuple[FoldedWeight, tuple[int, int]] | None]) -> None:
        self._terms = [term for term in terms if term is not None]
        self.weights = [None if term is None else term[0].weight[slice(*term[1])] for term in terms]
        self.bias = self._summed_bias()

    def _summed_bias(self) -> Tensor:
        return torch.stack([folded.shift[slice(*channels)] for folded, channels in self._terms]).sum(0)

    def refresh(self) -> None:
        """Write the sum of the present biases into the storage; weights are views."""
        self.bias.copy_(self._summed_bias())


class WeightStore:
    """Folded weights by their recipe, shared by the executors of all input shapes.

    Args:
        tensors: the model's parameters and buffers by name.
        dtype, device: of the maps.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._tensors = tensors
        self._folded: dict[WeightSpec, FoldedWeight] = {}
        self._groups: dict[tuple[WeightSpec, ...], GroupedWeights] = {}
        self._fused: dict[tuple[tuple[WeightSpec, tuple[int, int]] | None, ...], FusedSumWeights] = {}

    def get(self, spec: WeightSpec) -> FoldedWeight:
        if spec not in self._folded:
            self._folded[spec] = FoldedWeight(*spec.make(self._tensors), self.dtype, self.device)
        return self._folded[spec]

    def group(self, specs: Sequence[WeightSpec]) -> GroupedWeights:
        key = tuple(specs)
        if key not in self._groups:
            self._groups[key] = GroupedWeights([self.get(spec) for spec in specs])
        return self._groups[key]

    def fused_sum(self, terms: Sequence[tuple[WeightSpec, tuple[int, int]] | None]) -> FusedSumWeights:
        """Return the weights of a fused sum, for each term a recipe and its output channels."""
        key = tuple(terms)
        if key not in self._fused:
            self._fused[key] = FusedSumWeights([term and (self.get(term[0]), term[1]) for term in terms])
        return self._fused[key]

    def refresh(self, tensors: Mapping[str, Tensor]) -> None:
        """Write new values into the storage of the old ones, all or none. No call may run meanwhile."""
        made = [(folded, spec.make(tensors)) for spec, folded in self._folded.items()]
        self._tensors = tensors
        self._settle()  # launched graphs still read the old values
        for folded, values in made:
            folded.set(*values)
        for group in self._groups.values():
            group.refresh()
        for fused in self._fused.values():
            fused.refresh()
        self._settle()  # graphs that are launched next may be on another stream

    def _settle(self) -> None:
        if self.device.type == "cuda":
            settle(self.device)
