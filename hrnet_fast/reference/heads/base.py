"""The interface of a head, and the concatenated representation that several share."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn

from hrnet_fast.config import HRNetConfig
from hrnet_fast.reference.modularized_block import Size, resize
from hrnet_fast.reference.norm import NormFactory

torch.fx.wrap("resize")
Output = Tensor | list[Tensor] | tuple[Tensor, ...]


class Head:
    """A stateless description of the layers after the last stage and of how they are applied.

    Attributes:
        needs_stem: whether features are to begin with the stem's first map (1/2 of the input).
    """

    needs_stem = False

    def __init__(self, config: HRNetConfig) -> None:
        self.config = config
        self.head = config.head

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        """Return the layers by the name under which the network registers them."""
        return {}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        """Compute the network's output; `net` has the layers as attributes, `image_size` is the input's (H, W)."""
        raise NotImplementedError

    def concatenate(self, features: list[Tensor]) -> Tensor:
        """HRNetV2's representation: [N, 15C, H/4, W/4] for four branches (paper, section 3.3, Figure 4 b).

        Bilinear in every network, whatever the fusion interpolates with.
        """
        size = (features[0].shape[-2], features[0].shape[-1])
        return torch.cat([resize(f, size, "bilinear", self.config.align_corners) for f in features], dim=1)

    def finish(self, logits: Tensor, image_size: Size) -> Tensor:
        """Upsample dense logits to the input's size if the configuration asks for it (paper, section 5)."""
        if not self.head.upsample_logits:
            return logits
        return resize(logits, image_size, "bilinear", self.config.align_corners)


def output_conv(config: HRNetConfig, in_channels: int, *, bias: bool = True) -> nn.Module:
    """The last convolution of a dense head, or the identity where the representation itself is wanted."""
    head = config.head
    if head.num_outputs == 0:
        return nn.Identity()
    return nn.Conv2d(in_channels, head.num_outputs, head.kernel_size, 1, head.kernel_size // 2, bias=bias)
