"""Segmentation with object-contextual representations (HRNetV2 + OCR; paper, Table 3 and its reference [170]).

Layer names are those of the OCR branch of the authors' segmentation repository.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from hrnet_fast.reference.blocks import conv_norm
from hrnet_fast.reference.heads.base import Head, Output
from hrnet_fast.reference.heads.dense import mixing_layers
from hrnet_fast.reference.modularized_block import Size
from hrnet_fast.reference.norm import NormFactory


def _projection(norm: NormFactory, in_channels: int, out_channels: int, convs: int, *, bias: bool) -> nn.Sequential:
    """`convs` times 1x1 convolution and (normalisation, ReLU): keys 0, 1.0, 2, 3.0."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers.append(nn.Conv2d(in_channels, out_channels, 1, bias=bias))
        layers.append(nn.Sequential(norm(out_channels), nn.ReLU(inplace=True)))
        in_channels = out_channels
    return nn.Sequential(*layers)


def gather_objects(features: Tensor, logits: Tensor) -> Tensor:
    """Average `features` [N, C, H, W] over each class's soft region [N, K, H, W]: [N, C, K, 1]."""
    regions = logits.flatten(2).softmax(dim=2)  # [N, K, HW]
    return (regions @ features.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)


class ObjectAttention(nn.Module):
    """Every pixel [N, C, H, W] attends to the object representations [N, C, K, 1]; returns [N, C, H, W]."""

    def __init__(self, channels: int, key_channels: int, norm: NormFactory, *, bias: bool) -> None:
        super().__init__()
        self.f_pixel = _projection(norm, channels, key_channels, 2, bias=bias)
        self.f_object = _projection(norm, channels, key_channels, 2, bias=bias)
        self.f_down = _projection(norm, channels, key_channels, 1, bias=bias)
        self.f_up = _projection(norm, key_channels, channels, 1, bias=bias)
        self.scale = key_channels**-0.5

    def forward(self, x: Tensor, objects: Tensor) -> Tensor:
        pixels = self.f_pixel(x)
        query = pixels.flatten(2).transpose(1, 2)  # [N, HW, key]
        key = self.f_object(objects).flatten(2)  # [N, key, K]
        value = self.f_down(objects).flatten(2).transpose(1, 2)  # [N, K, key]
        attention = ((query @ key) * self.scale).softmax(dim=-1)
        # Sizes come from a map: as numbers, they would stand in whatever is recorded or exported.
        context = (attention @ value).transpose(1, 2).reshape_as(pixels)
        return cast(Tensor, self.f_up(context))


class SpatialOCR(nn.Module):
    """Pixels, augmented by the context of the objects they belong to."""

    def __init__(self, channels: int, key_channels: int, dropout: float, norm: NormFactory, *, bias: bool) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention(channels, key_channels, norm, bias=bias)
        mix = _projection(norm, 2 * channels, channels, 1, bias=bias)
        self.conv_bn_dropout = nn.Sequential(*mix, nn.Dropout2d(dropout))

    def forward(self, x: Tensor, objects: Tensor) -> Tensor:
        context = self.object_context_block(x, objects)
        return cast(Tensor, self.conv_bn_dropout(torch.cat([context, x], dim=1)))


class OCRHead(Head):
    """Coarse (auxiliary) logits, and logits of the object-contextual representation.

    Returns ``[auxiliary, main]``, each [N, K, H/4, W/4], a tuple of these (``ocr_outputs="tuple"``), or the main logits
    alone (``"main"``).
    """

    def layers(self, norm: NormFactory) -> dict[str, nn.Module]:
        config, head = self.config, self.head
        width = sum(config.out_channels)
        return {
            "conv3x3_ocr": conv_norm(norm, width, head.channels, 3, relu=True, bias=head.conv_bias),
            "ocr_distri_head": SpatialOCR(
                head.channels, head.key_channels, head.dropout, norm, bias=head.attention_bias
            ),
            "cls_head": nn.Conv2d(head.channels, head.num_outputs, 1),
            "aux_head": mixing_layers(config, norm, output_bias=True, dropout=0.0),
        }

    def __call__(self, net: nn.Module, features: list[Tensor], image_size: Size) -> Output:
        x = self.concatenate(features)
        coarse = net.get_submodule("aux_head")(x)
        x = net.get_submodule("conv3x3_ocr")(x)
        x = net.get_submodule("ocr_distri_head")(x, gather_objects(x, coarse))
        main = self.finish(net.get_submodule("cls_head")(x), image_size)
        if self.head.ocr_outputs == "main":
            return main
        outputs = [self.finish(coarse, image_size), main]
        return outputs if self.head.ocr_outputs == "both" else tuple(outputs)
