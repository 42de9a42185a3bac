"""The modularized block: parallel branches and the multi-resolution fusion (paper, sections 3.1, 3.2 and Figure 3)."""

from __future__ import annotations

from typing import cast

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hrnet_fast.config import HRNetConfig, StageConfig, UpsampleMode, UpsampleTo
from hrnet_fast.errors import InputError
from hrnet_fast.reference.blocks import conv_norm, make_branch
from hrnet_fast.reference.norm import NormFactory

Size = tuple[int, int]


# Functions that choose by sizes are one node each where torch.fx traces.
@torch.fx.wrap
def resize(x: Tensor, size: Size, mode: UpsampleMode, align_corners: bool) -> Tensor:
    """Interpolate [N, C, h, w] to [N, C, *size]; a no-op where the size already fits."""
    if (x.shape[-2], x.shape[-1]) == size:
        return x
    return interpolate(x, size=size, mode=mode, align_corners=align_corners if mode == "bilinear" else None)


@torch.fx.wrap
def upsample(x: Tensor, scale: int, size: Size, mode: UpsampleMode, to: UpsampleTo, align_corners: bool) -> Tensor:
    """Bring [N, C, h, w] to [N, C, *size], which is `scale` times as large, as ``HRNetConfig.upsample_to`` has it.

    Raises:
        InputError: with ``to="scale"``, `scale` does not meet `size`.
    """
    if to == "target":
        return resize(x, size, mode, align_corners)
    scaled = (x.shape[-2] * scale, x.shape[-1] * scale)
    if to == "scale" and scaled != size:
        raise InputError(
            f"A fusion target of {size[0]}x{size[1]} cannot be met by upsampling {x.shape[-2]}x{x.shape[-1]} by "
            f"{scale}: pad the input to a multiple of 32, or build the network with upsample_to='target'."
        )
    # mmsegmentation upsamples by the scale and then, where that overshoots, interpolates once more.
    return resize(resize(x, scaled, mode, align_corners), size, "bilinear", align_corners)


class HighResolutionModule(nn.Module):
    """Residual units on every branch, then every branch summed into every resolution.

    Takes and returns a list of [N, C_r, H_r, W_r], highest resolution first; the given list is left as it was.
    ``fuse_layers[r][x]`` brings branch x to resolution r: the identity (x = r), a 1x1 convolution and normalisation
    before upsampling (x > r: the low-resolution order, equal to the paper's and cheaper), or a chain of stride-2 3x3
    convolutions (x < r).
    """

    def __init__(
        self, stage: StageConfig, config: HRNetConfig, norm: NormFactory, *, fuse: bool, multiscale_output: bool
    ) -> None:
        super().__init__()
        self.num_branches = stage.num_branches
        self.upsample = config.upsample
        self.upsample_to = config.upsample_to
        self.align_corners = config.align_corners
        self.product = config.fusion == "product"
        self.strided = config.downsample == "strided"
        self.branches = nn.ModuleList(
            make_branch(stage.block, c_in, planes, blocks, norm)
            for c_in, planes, blocks in zip(stage.out_channels, stage.channels, stage.num_blocks, strict=True)
        )
        self.num_outputs = stage.num_branches if multiscale_output else 1
        self.fuse_layers: nn.ModuleList | None = None
        if fuse and stage.num_branches > 1:
            channels = stage.out_channels
            self.fuse_layers = nn.ModuleList(
                nn.ModuleList(
                    _fuse_layer(norm, channels, source=x, target=r, strided=self.strided)
                    for x in range(stage.num_branches)
                )
                for r in range(self.num_outputs)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        if self.fuse_layers is None:
            return features[: self.num_outputs]
        return [self._fuse(r, features) for r in range(self.num_outputs)]

    def _fuse(self, target: int, features: list[Tensor]) -> Tensor:
        assert self.fuse_layers is not None
        row = cast(nn.ModuleList, self.fuse_layers[target])
        size = (features[target].shape[-2], features[target].shape[-1])
        total: Tensor | None = None
        # Ascending order of sources, as every upstream sums: the order decides the last bit.
        for source, layer in enumerate(row):
            term = self._term(layer, features[source], source - target, size)
            total = term if total is None else total * term if self.product else total + term
        return cast(Tensor, self.relu(total))

    def _term(self, layer: nn.Module, x: Tensor, levels_up: int, size: Size) -> Tensor:
        if levels_up < 0 and not self.strided:
            x = resize(x, size, "bilinear", self.align_corners)
        x = layer(x)
        if levels_up <= 0:
            return x
        return upsample(x, 1 << levels_up, size, self.upsample, self.upsample_to, self.align_corners)


def _fuse_layer(norm: NormFactory, channels: tuple[int, ...], *, source: int, target: int, strided: bool) -> nn.Module:
    c_in, c_out = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target or not strided:
        return conv_norm(norm, c_in, c_out, 1)
    steps = target - source
    return nn.Sequential(
        *(conv_norm(norm, c_in, c_in, 3, 2, relu=True) for _ in range(steps - 1)), conv_norm(norm, c_in, c_out, 3, 2)
    )
