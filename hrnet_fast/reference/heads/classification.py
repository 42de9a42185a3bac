"""Classification heads of Appendix B: C (Figure 11) and the alternatives Ci and Cii of Table 16."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from hrnet_fast.config import HRNetConfig
from hrnet_fast.reference.blocks import Bottleneck, conv_norm
from hrnet_fast.reference.heads.base import Head, Output
from hrnet_fast.reference.modularized_block import Size
from hrnet_fast.reference.norm import NormFactory

FIRST_PLANES = 32  # bottleneck planes of the highest resolution: 4 x 32 = 128 channels, doubling per level


def widening_units(config: HRNetConfig, norm: NormFactory) -> nn.ModuleList:
    """One bottleneck per branch that widens C, 2C, 4C, 8C to 128, 256, 512, 1024 (Appendix B)."""
    return nn.ModuleList(
        nn.Sequential(Bottleneck(channels, FIRST_PLANES * 2**i, norm)) for i, channels in enumerate(config.out_channels)
    )


class ClassifierMixin(Head):
    """Global average pooling, dropout and the linear classifier; 0 outputs return the pooled vector."""

    def classifier(self, in_features: int) -> nn.Module:
        return nn.Linear(in_features, self.head.num_outputs) if self.head.num_outputs else nn.Identity()

    def classify(self, net: nn.Module, pooled: Tensor) -> Tensor:
        if net.training and self.head.dropout:
            pooled = nn.functional.dropout(pooled, self.head.dropout)
        logits: Tensor = net.get_submodule("classifier")(pooled)
        return logits


class ClassificationHead(ClassifierMixin):
    """HRNet-Wx-C: widened branches summed down to the lowest resolution, 1024 to 2048 channels, pooled."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        widths = [4 * FIRST_PLANES * 2**i for i in range(len(self.config.out_channels))]
        bias = self.head.conv_bias
        return {
            "incre_modules": widening_units(self.config, norm),
            "downsamp_modules": nn.ModuleList(
                conv_norm(norm, a, b, 3, 2, relu=True, bias=bias) for a, b in pairwise(widths)
            ),
            "final_layer": conv_norm(norm, widths[-1], 2048, 1, relu=True, bias=bias),
            "classifier": self.classifier(2048),
        }

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        units = net.get_submodule("incre_modules").children()
        return self.sum_and_classify(net, (unit(f) for unit, f in zip(units, features, strict=True)))

    def sum_and_classify(self, net: nn.Module, widened: Iterator[Tensor]) -> Tensor:
        """Return the logits of the widened branches."""
        x = next(widened)
        for layer in net.get_submodule("downsamp_modules").children():
            x = next(widened) + layer(x)
        x = net.get_submodule("final_layer")(x)
        return self.classify(net, x.mean(dim=(2, 3)))


class PooledClassificationHead(ClassifierMixin):
    """HRNet-Wx-Ci: every branch pooled by itself, the 15C-dimensional concatenation classified."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        return {"classifier": self.classifier(sum(self.config.out_channels))}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        return self.classify(net, torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1))


class StridedClassificationHead(ClassifierMixin):
    """HRNet-Wx-Cii: branches brought to 512 channels by stride-2 bottlenecks, concatenated, pooled, classified."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        branches = len(self.config.out_channels)
        widest = 64 * 2 ** (branches - 1)  # 512 for four
        return {"incre_modules": self._units(norm), "classifier": self.classifier(widest * branches)}

    def _units(self, norm: NormFactory) -> nn.ModuleList:
        branches = len(self.config.out_channels)
        rows = []
        for i, channels in enumerate(self.config.out_channels):
            # 64, 128, 256, 512 channels first; then one stride-2 unit per doubling, up to 512.
            planes = [16 * 2**k for k in range(i, branches)]
            units = [Bottleneck(channels, planes[0], norm)]
            units += [Bottleneck(4 * a, b, norm, stride=2) for a, b in pairwise(planes)]
            rows.append(nn.Sequential(*units))
        return nn.ModuleList(rows)

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        rows = net.get_submodule("incre_modules").children()
        maps = [row(f) for row, f in zip(rows, features, strict=True)]
        return self.classify(net, torch.cat(maps, dim=1).mean(dim=(2, 3)))
