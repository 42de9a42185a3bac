"""Residual units, with the parameter names that every upstream shares."""

from __future__ import annotations

import contextlib
from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hrnet_fast.config import EXPANSION
from hrnet_fast.reference.norm import NormFactory, without_stat_updates


def conv_norm(
    norm: NormFactory,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    *,
    relu: bool = False,
    bias: bool = False,
) -> nn.Sequential:
    """Return convolution, normalisation and optionally ReLU as a Sequential: keys ``0.*`` and ``1.*``."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias),
        norm(out_channels),
    ]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class ResidualUnit(nn.Module):
    """The base of both units: the shortcut, the sum, and recomputation in backward on request.

    [N, inplanes, H, W] to [N, planes * expansion, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, inplanes: int, out_channels: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inplanes != out_channels:
            self.downsample = conv_norm(norm, inplanes, out_channels, 1, stride)
            # A shortcut keeps no padding: a 1x1 convolution.
        self.gradient_checkpointing = False

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def last_norm(self) -> nn.Module:
        """The normalisation that ends the residual path (its scale is zeroed by ``zero_init_residual``)."""
        raise NotImplementedError

    def _forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(self.residual(x) + shortcut))

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and x.requires_grad:
            recomputed: Tensor = checkpoint(
                self._forward,
                x,
                use_reentrant=False,
                context_fn=lambda: (contextlib.nullcontext(), without_stat_updates(self)),
            )
            return recomputed
        return self._forward(x)


class BasicBlock(ResidualUnit):
    """Two 3x3 convolutions (paper, section 3.4)."""

    expansion = EXPANSION["basic"]

    def __init__(self, inplanes: int, planes: int, norm: NormFactory, stride: int = 1) -> None:
        super().__init__(inplanes, planes, stride, norm)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return cast(Tensor, self.bn2(self.conv2(x)))

    def last_norm(self) -> nn.Module:
        return self.bn2


class Bottleneck(ResidualUnit):
    """1x1, 3x3 and 1x1 convolutions, four times as wide at the end (Table 14, stage 1; Table 15, lower half)."""

    expansion = EXPANSION["bottleneck"]

    def __init__(self, inplanes: int, planes: int, norm: NormFactory, stride: int = 1) -> None:
        super().__init__(inplanes, planes * self.expansion, stride, norm)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = norm(planes * self.expansion)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return cast(Tensor, self.bn3(self.conv3(x)))

    def last_norm(self) -> nn.Module:
        return self.bn3


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def make_branch(kind: str, inplanes: int, planes: int, num_blocks: int, norm: NormFactory) -> nn.Sequential:
    """Return `num_blocks` residual units in a row: keys ``0.*``, ``1.*``, ..."""
    block = BLOCKS[kind]
    units: list[nn.Module] = [block(inplanes, planes, norm)]
    units += [block(planes * block.expansion, planes, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(*units)
