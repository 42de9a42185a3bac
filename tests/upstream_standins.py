"""Small networks built as the authors' repositories build theirs: the same structure, names and order of calls.

Written anew for these tests. What differs between the repositories is what `accelerate` has to tell apart: where and
how a fusion upsamples. Packages on the index are tested themselves (tests/upstreams).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (4, 8, 12)


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, relu: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """The authors'."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


class Bottleneck(nn.Module):
    """The authors'."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += residual
        return self.relu(out)


class HighResolutionModule(nn.Module):
    """The authors' for pose: ``nn.Upsample`` inside ``fuse_layers``; forward writes into the list it is given."""

    inner: ClassVar[dict[str, Any] | None] = {"mode": "nearest"}  # of upsampling inside fuse_layers, if it is there

    def __init__(
        self, num_branches: int, block: Callable[..., nn.Module] = BasicBlock, multi_scale_output: bool = True
    ) -> None:
        super().__init__()
        self.num_branches = num_branches
        channels = CHANNELS[:num_branches]
        self.branches = nn.ModuleList(nn.Sequential(block(c, c), block(c, c)) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._layer(channels, i, j) for j in range(num_branches))
            for i in range(num_branches if multi_scale_output else 1)
        )
        self.relu = nn.ReLU(True)

    def _layer(self, channels: tuple[int, ...], i: int, j: int) -> nn.Module | None:
        if i == j:
            return None
        if j > i:
            layer = conv_bn(channels[j], channels[i], 1)
            if self.inner is not None:
                layer.append(nn.Upsample(scale_factor=2 ** (j - i), **self.inner))
            return layer
        steps = [conv_bn(channels[j], channels[j], 3, 2, relu=True) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, conv_bn(channels[j], channels[i], 3, 2))

    def resized(self, y: Tensor, like: Tensor) -> Tensor:
        return y

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        for i in range(self.num_branches):
            x[i] = self.branches[i](x[i])
        fused = []
        for i, row in enumerate(self.fuse_layers):
            y: Any = x[0] if i == 0 else row[0](x[0])  # type: ignore[index]
            for j in range(1, self.num_branches):
                if i == j:
                    y = y + x[j]
                elif j > i:
                    y = y + self.resized(row[j](x[j]), x[i])  # type: ignore[index]
                else:
                    y = y + row[j](x[j])  # type: ignore[index]
            fused.append(self.relu(y))
        return fused


class SegmentationModule(HighResolutionModule):
    """The authors' for segmentation and faces: interpolates to the target's size in forward."""

    inner = None
    align_corners = False

    def resized(self, y: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(y, size=list(like.shape[-2:]), mode="bilinear", align_corners=self.align_corners)


class AlignedModule(SegmentationModule):
    """The authors' OCR networks."""

    align_corners = True


class Net(nn.Module):
    """Stem, a bottleneck, three branches, modules in a row; returns the branches as a list."""

    def __init__(
        self, module: Callable[..., nn.Module] = HighResolutionModule, block: Callable[..., nn.Module] = BasicBlock,
        modules: int = 2, multi_scale_output: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Bottleneck(8, 2), Bottleneck(8, 4, downsample=conv_bn(8, 16, 1)))
        self.transition1 = nn.ModuleList(
            [
                conv_bn(16, CHANNELS[0], 3, 1, relu=True),
                nn.Sequential(conv_bn(16, CHANNELS[1], 3, 2, relu=True)),
                nn.Sequential(conv_bn(16, 16, 3, 2, relu=True), conv_bn(16, CHANNELS[2], 3, 2, relu=True)),
            ]
        )
        last = [module(3, block, multi_scale_output)]
        self.stage2 = nn.Sequential(*(module(3, block) for _ in range(modules - 1)), *last)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        features: list[Tensor] = self.stage2([layer(x) for layer in self.transition1])
        return features


def net(*args: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Return a :class:`Net` with weights that matter."""
    from tiny_networks import enliven  # which needs this package, and a process that reads a model may lack it

    return enliven(Net(*args, **options)).to(dtype)
