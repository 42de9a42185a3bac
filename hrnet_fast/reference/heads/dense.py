"""Heads that return maps: bare features, HRNetV1, V1h, V2 and facial landmarks."""

from __future__ import annotations

from torch import Tensor, nn

from hrnet_fast.config import HRNetConfig
from hrnet_fast.reference.blocks import conv_norm
from hrnet_fast.reference.heads.base import Head, Output, output_conv
from hrnet_fast.reference.heads.classification import widening_units
from hrnet_fast.reference.modularized_block import Size
from hrnet_fast.reference.norm import NormFactory


class FeaturesHead(Head):
    """The branches themselves, or timm's ``features_only`` maps; a list in the order of ``out_indices``.

    In training, timm widens every level and so updates the running statistics of levels that ``out_indices`` leaves
    out; here those are not computed and their statistics stay. Outputs and gradients are the same.
    """

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__(config)
        self.widened = self.head.feature_location == "incre"
        self.needs_stem = self.widened and (self.head.out_indices is None or 0 in self.head.out_indices)

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        return {"incre_modules": widening_units(self.config, norm)} if self.widened else {}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        if not self.widened:
            return [features[i] for i in self.head.out_indices or range(len(features))]
        # Indices count the stem's map as 0 whether or not it is asked for.
        branches = features[1:] if self.needs_stem else features
        units = net.get_submodule("incre_modules").children()
        maps = dict(enumerate(features[:1] if self.needs_stem else []))
        wanted = self.head.out_indices or range(len(branches) + 1)
        maps |= {i: unit(b) for i, (unit, b) in enumerate(zip(units, branches, strict=True), start=1) if i in wanted}
        return [maps[i] for i in wanted]


class V1Head(Head):
    """Only the highest resolution, and a convolution on it: the authors' pose net (Figure 4 a)."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        return {"final_layer": output_conv(self.config, self.config.out_channels[0])}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        return self.finish(net.get_submodule("final_layer")(features[0]), image_size)


class V1hHead(Head):
    """V1 widened by a 1x1 convolution to the dimension of V2 (section 7, "V1 vs. V2")."""

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        channels = self.config.out_channels
        bias = self.head.conv_bias
        return {
            "expand_layer": conv_norm(norm, channels[0], sum(channels), 1, relu=True, bias=bias),
            "final_layer": output_conv(self.config, sum(channels)),
        }

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        x = net.get_submodule("expand_layer")(features[0])
        return self.finish(net.get_submodule("final_layer")(x), image_size)


def mixing_layers(config: HRNetConfig, norm: NormFactory, *, output_bias: bool, dropout: float) -> nn.Sequential:
    """Convolution, normalisation and ReLU over the concatenation, then the classifier: keys 0, 1 and 3."""
    head, channels = config.head, sum(config.out_channels)
    width = head.mixing_channels or channels
    conv, norm_layer, relu = conv_norm(norm, channels, width, head.mixing_kernel, relu=True, bias=head.conv_bias)
    if dropout:  # beside the ReLU: the classifier keeps its key
        relu = nn.Sequential(relu, nn.Dropout2d(dropout))
    return nn.Sequential(conv, norm_layer, relu, output_conv(config, width, bias=output_bias))


class V2Head(Head):
    """All resolutions concatenated, mixed and classified: the authors' segmentation head (Figure 4 b)."""

    name = "last_layer"

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        bias, dropout = self.head.output_bias, self.head.dropout
        return {self.name: mixing_layers(self.config, norm, output_bias=bias, dropout=dropout)}

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        return self.finish(net.get_submodule(self.name)(self.concatenate(features)), image_size)


class FaceHead(V2Head):
    """V2 under the name that the facial-landmark repository gives it (Appendix D)."""

    name = "head"
