"""The semantic branch of Hybrid Task Cascade (arXiv 1901.07518, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from hrnet_fast.detection.boxes import wide
from hrnet_fast.detection.head_configs import SemanticConfig
from hrnet_fast.detection.layers import ConvReLU, conv_tower, draw_kaiming


class SemanticHead(nn.Module):
    """The layers; keys as in mmdetection's ``FusedSemanticHead``.

    Takes the pyramid's levels and returns class logits [N, classes, H, W] and features [N, channels, H, W] in the size
    of the configured level.
    """

    def __init__(self, in_channels: int, levels: int, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.lateral_convs = nn.ModuleList(ConvReLU(in_channels, in_channels, 1) for _ in range(levels))
        self.convs = conv_tower(in_channels, config.channels, config.num_convs)
        self.conv_embedding = ConvReLU(config.channels, config.channels, 1)
        self.conv_logits = nn.Conv2d(config.channels, config.num_classes, 1)
        draw_kaiming(self)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        main = self.config.level
        size = levels[main].shape[-2:]
        x = self.lateral_convs[main](levels[main])
        for i, (level, conv) in enumerate(zip(levels, self.lateral_convs, strict=True)):
            if i != main:
                x = x + conv(interpolate(level, size, mode="bilinear", align_corners=True))
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(x), self.conv_embedding(x)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over all pixels; those without a class count as zeros in it.

        Args:
            logits: of :meth:`forward`.
            labels: class of each pixel of the batch [N, height, width].
        """
        goals = interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0].long()
        each = cross_entropy(wide(logits), goals, reduction="none", ignore_index=self.config.ignore_index)
        return self.config.weight * each.mean()
