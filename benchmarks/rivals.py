"""Networks that the paper's timing tables compare with HRNet, as plain modules with random weights.

Of Faster R-CNN, backbone and pyramid are here: region proposals and box heads are the same in all rows. ResNets have
the stride in the 3x3 convolution, except those of Faster R-CNN, which have it in the 1x1 as He et al.'s: so the paper's
GFLOPs fit ResNet-50 and 101, and ResNeXt fits with the other. Stems of the segmentation networks are those that give
the printed parameters and GFLOPs; PSPNet's are 0.3 % and 3.4 % lower with either stem.

Sources: He et al. 2016; Xie et al. 2017 (ResNeXt); Xiao et al. 2018 (SimpleBaseline); Zhao et al. 2017 (PSPNet); Chen
et al. 2017 (DeepLabV3); Lin et al. 2017 (FPN).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

CLASSES, JOINTS = 19, 17


def conv(into: int, out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def unit(into: int, out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(into, out, kernel, stride, dilation, groups), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def resnet(
    blocks: tuple[int, ...], groups: int = 1, dilated: bool = False, deep: bool = False, early: bool = False
) -> nn.Module:
    """Return torchvision's ResNet, or with groups its ResNeXt 64x4d; it returns the maps "1" to "4" of its stages.

    Args:
        dilated: the last two stages keep stride 8.
        deep: the stem is three 3x3 convolutions.
        early: strides are those of the 1x1 convolutions.
    """
    made = ResNet(
        Bottleneck, list(blocks), groups=groups, width_per_group=64 if groups == 1 else 4,
        replace_stride_with_dilation=[False, dilated, dilated],
    )  # fmt: skip
    if deep:
        made.conv1 = nn.Sequential(unit(3, 64, 3, 2), unit(64, 64, 3), conv(64, 128, 3))  # type: ignore[assignment]
        made.bn1, made.inplanes = nn.BatchNorm2d(128), 128
        made.layer1 = made._make_layer(Bottleneck, 64, blocks[0])
    for layer in made.modules() if early else ():
        if isinstance(layer, Bottleneck):
            layer.conv1.stride, layer.conv2.stride = layer.conv2.stride, layer.conv1.stride
    return create_feature_extractor(made, {f"layer{k}": f"{k}" for k in (1, 2, 3, 4)})


R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)


class SimpleBaseline(nn.Module):
    """ResNet, three 4x4 deconvolutions of 256 channels, heatmaps at a quarter of the resolution."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = resnet(blocks)
        layers: list[nn.Module] = []
        for into in (2048, 256, 256):
            layers += [nn.ConvTranspose2d(into, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers, nn.Conv2d(256, JOINTS, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x)["4"])
        return out


class PyramidPooling(nn.Module):
    """Means over 1, 2, 3 and 6 bins a side, beside the map itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bins = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(b), unit(2048, 512)) for b in (1, 2, 3, 6))
        self.mix = unit(4096, 512, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.interpolate(b(x), size=x.shape[2:], mode="bilinear", align_corners=False) for b in self.bins]
        out: Tensor = self.mix(torch.cat([x, *pooled], 1))
        return out


class AtrousPyramid(nn.Module):
    """1x1, three dilated 3x3 (12, 24, 36 at stride 8) and the image's mean, mixed by a 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = nn.ModuleList([unit(2048, 256), *(unit(2048, 256, 3, dilation=d) for d in (12, 24, 36))])
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), unit(2048, 256))
        self.mix = unit(1280, 256)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x).expand(-1, -1, *x.shape[2:])
        out: Tensor = self.mix(torch.cat([*(w(x) for w in self.windows), mean], 1))
        return out


class Segmentation(nn.Module):
    """A dilated ResNet-101, a head, and 19 classes at an eighth of the resolution."""

    def __init__(self, head: nn.Module, channels: int, deep: bool) -> None:
        super().__init__()
        self.backbone, self.head = resnet(R101, dilated=True, deep=deep), head
        self.classify = nn.Conv2d(channels, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classify(self.head(self.backbone(x)["4"]))
        return out


class Pyramid(nn.Module):
    """Backbone and feature pyramid of Faster R-CNN: five maps of 256 channels, strides 4 to 64."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = FeaturePyramidNetwork([256 << k for k in range(4)], 256, LastLevelMaxPool())

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.pyramid(self.backbone(x)).values())


# By the rows of the paper's tables 17, 18 and 19.
RIVALS: dict[str, Callable[[], nn.Module]] = {
    "simplebaseline_r50": lambda: SimpleBaseline(R50),
    "simplebaseline_r101": lambda: SimpleBaseline(R101),
    "simplebaseline_r152": lambda: SimpleBaseline(R152),
    "dilated_r101": lambda: Segmentation(unit(2048, 512, 3), 512, deep=True),
    "pspnet_r101": lambda: Segmentation(PyramidPooling(), 512, deep=True),
    "deeplabv3_r101": lambda: Segmentation(AtrousPyramid(), 256, deep=False),
    "faster_rcnn_r50_fpn": lambda: Pyramid(resnet(R50, early=True)),
    "faster_rcnn_r101_fpn": lambda: Pyramid(resnet(R101, early=True)),
    "faster_rcnn_x101_64x4d_fpn": lambda: Pyramid(resnet(R101, groups=64)),
}


def rival(name: str) -> nn.Module:
    """Return one of RIVALS with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return RIVALS[name]().eval()
