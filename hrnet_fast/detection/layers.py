"""Layers that the heads share, under mmdetection's names, and their initial weights."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import relu


class ConvReLU(nn.Sequential):
    """A convolution ``conv`` that keeps the size, group normalisation ``gn`` where asked for, and ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, groups: int | None = None) -> None:
        conv = nn.Conv2d(in_channels, channels, kernel_size, 1, kernel_size // 2, bias=groups is None)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
        if groups is not None:
            layers["gn"] = nn.GroupNorm(groups, channels)
        super().__init__(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return relu(x)


def conv_tower(in_channels: int, channels: int, count: int, groups: int | None = None) -> nn.ModuleList:
    """Return `count` 3x3 convolutions with ReLU, one after another."""
    return nn.ModuleList(ConvReLU(in_channels if i == 0 else channels, channels, 3, groups) for i in range(count))


def draw_normal(module: nn.Module, std: float) -> None:
    """Draw the weights of all convolutions and linear layers in `module` from a normal distribution; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def draw_kaiming(module: nn.Module) -> None:
    """Draw the weights of all convolutions in `module` as for layers before ReLU; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
