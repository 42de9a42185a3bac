"""HRNetV2p: a feature pyramid made by downsampling HRNetV2's representation (paper, Figure 4 c)."""

from __future__ import annotations

from collections import OrderedDict

import torch.fx
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from hrnet_fast.config import HeadConfig
from hrnet_fast.errors import InputError
from hrnet_fast.reference.heads.base import Head, Output
from hrnet_fast.reference.modularized_block import Size
from hrnet_fast.reference.norm import NormFactory, norm_factory


def _conv(in_channels: int, head: HeadConfig, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution as ``conv`` and what normalises it as ``bn`` or ``gn``, as mmdetection's modules have them."""
    norm = head.pyramid_norm
    conv = nn.Conv2d(in_channels, head.channels, kernel_size, stride, kernel_size // 2, bias=norm is None)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm is not None:
        layers["gn" if norm.kind == "gn" else "bn"] = norm_factory(norm)(head.channels)
    return nn.Sequential(layers)


@torch.fx.wrap
def large_enough(x: Tensor, levels: int) -> Tensor:
    """Return `x`, [N, C, H, W], of which a pyramid of so many levels can be pooled.

    Raises:
        InputError: it is too small.
    """
    smallest: int = 2 ** (levels - 1)
    if min(x.shape[-2:]) < smallest:
        raise InputError(
            f"HRFPN: {levels} levels need a map of at least {smallest}x{smallest} at 1/4, an input of {4 * smallest}x"
            f"{4 * smallest}; got {x.shape[-2]}x{x.shape[-1]} at 1/4. Pad the input or take fewer num_levels."
        )
    return x


class HRFPN(nn.Module):
    """Reduce the concatenation to ``head.channels``, pool it to each level, and convolve every level.

    Takes [N, 15C, H/4, W/4]; returns a tuple of [N, channels, H/2^(k+2), W/2^(k+2)] for k = 0 .. levels - 1, each
    halved once more (rounding up) with ``pyramid_stride=2``. Keys as in mmdetection's ``neck``.
    """

    def __init__(self, in_channels: int, head: HeadConfig) -> None:
        super().__init__()
        self.pool = head.pyramid_pool
        self.reduction_conv = _conv(in_channels, head, 1)
        self.fpn_convs = nn.ModuleList(
            _conv(head.channels, head, 3, head.pyramid_stride) for _ in range(head.num_levels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.reduction_conv(large_enough(x, len(self.fpn_convs)))
        pool = max_pool2d if self.pool == "max" else avg_pool2d
        maps = [x if k == 0 else pool(x, 2**k, 2**k) for k in range(len(self.fpn_convs))]
        return tuple(conv(m) for conv, m in zip(self.fpn_convs, maps, strict=True))


class PyramidHead(Head):
    """HRNetV2p; returns a tuple of ``num_levels`` maps of ``channels`` each, 1/4 first."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        return {"neck": HRFPN(sum(self.config.out_channels), self.head)}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        levels: tuple[Tensor, ...] = net.get_submodule("neck")(self.concatenate(features))
        return levels
