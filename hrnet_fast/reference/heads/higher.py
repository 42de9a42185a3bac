"""HigherHRNet: keypoints and grouping tags at 1/4, and again after transposed convolutions (arXiv 1908.10357).

Layer names are those of the authors' ``pose_higher_hrnet.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hrnet_fast.config import DeconvConfig
from hrnet_fast.reference.blocks import BasicBlock
from hrnet_fast.reference.heads.base import Head, Output
from hrnet_fast.reference.modularized_block import Size
from hrnet_fast.reference.norm import NormFactory

# Padding and output padding that make a transposed convolution of stride 2 double its input, by kernel size.
PADDING = {4: (1, 0), 3: (1, 1), 2: (0, 0)}


def _step(in_channels: int, step: DeconvConfig, norm: NormFactory) -> nn.Sequential:
    """Transposed convolution, normalisation and ReLU (keys ``0.0``, ``0.1``), then residual units (``1.0``, ...)."""
    padding, output_padding = PADDING[step.kernel_size]
    up = nn.ConvTranspose2d(
        in_channels, step.channels, step.kernel_size, 2, padding, output_padding=output_padding, bias=False
    )
    units = (nn.Sequential(BasicBlock(step.channels, step.channels, norm)) for _ in range(step.num_blocks))
    return nn.Sequential(nn.Sequential(up, norm(step.channels), nn.ReLU(inplace=True)), *units)


class HigherHead(Head):
    """Returns a list: [N, K + tags[0], H/4, W/4], [N, K + tags[1], H/2, W/2], ... for K keypoints."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        head = self.head
        outputs = [head.num_outputs + tags for tags in head.tags]
        width = self.config.out_channels[0]
        widths, steps = [width], []
        for before, step in zip(outputs, head.deconvs, strict=False):
            steps.append(_step(widths[-1] + (before if step.concat else 0), step, norm))
            widths.append(step.channels)
        finals = [
            nn.Conv2d(c_in, c_out, head.kernel_size, 1, head.kernel_size // 2)
            for c_in, c_out in zip(widths, outputs, strict=True)
        ]
        return {"final_layers": nn.ModuleList(finals), "deconv_layers": nn.ModuleList(steps)}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        finals = list(net.get_submodule("final_layers").children())
        steps = net.get_submodule("deconv_layers").children()
        x = features[0]
        outputs: list[Tensor] = [finals[0](x)]
        for step, layer, final in zip(self.head.deconvs, steps, finals[1:], strict=True):
            x = layer(torch.cat([x, outputs[-1]], dim=1) if step.concat else x)
            outputs.append(final(x))
        return [self.finish(y, image_size) for y in outputs]
