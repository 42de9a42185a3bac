"""``TorchvisionBackbone``: HRNetV2p's pyramid as the backbone of torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from hrnet_fast.errors import ConfigError
from hrnet_fast.reference.hrnet import HRNetReference


class TorchvisionBackbone(nn.Module):
    """The network ``body`` in the form that torchvision's detectors take: levels by name, and ``out_channels``.

    Takes [N, in_channels, H, W] and returns an OrderedDict of the levels under ``"0"``, ``"1"``, ...:
    [N, out_channels, H / 2^(k+2), W / 2^(k+2)] for level k, each halved once more with ``pyramid_stride=2``. Regions
    of torchvision's ``MultiScaleRoIAlign`` are pooled from the first four by default.

    Args:
        network: with the ``"v2p"`` head. It becomes ``body`` itself: keys here are its own after ``body.``.

    Raises:
        ConfigError: the network has another head.
    """

    def __init__(self, network: HRNetReference) -> None:
        super().__init__()
        head = network.config.head
        if head.kind != "v2p":
            raise ConfigError(
                f"as_torchvision_backbone: this network has a {head.kind!r} head, which gives no pyramid; accepted is "
                "the 'v2p' head, as create_model('hrnetv2p_w32_det') has."
            )
        self.body = network
        self.out_channels = head.channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict((str(k), level) for k, level in enumerate(self.body(x)))
