"""The whole network in plain PyTorch, with the authors' parameter names.

Annotations are objects here, not strings: torch.fx copies those of ``forward``, and pickles no graph with strings.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hrnet_fast.config import HRNetConfig, StageConfig
from hrnet_fast.errors import InputError, shown
from hrnet_fast.reference.blocks import ResidualUnit, conv_norm, make_branch
from hrnet_fast.reference.heads import Output, make_head
from hrnet_fast.reference.modularized_block import HighResolutionModule
from hrnet_fast.reference.norm import NormFactory, norm_factory


class HRNetReference(nn.Module):
    """HRNet as the paper and the authors' repositories define it.

    Keys are the authors': ``conv1``, ``bn1``, ``conv2``, ``bn2`` (stem), ``layer1`` (stage 1), ``transitionK``,
    ``stageK.<module>.branches`` / ``.fuse_layers``, and the head's own at the top level.

    Args:
        config: the network.
        norm_layer: replaces the configuration's normalisation by any ``channels -> module``.

    Input is a floating [N, in_channels, H, W]; what :meth:`forward` returns depends on the head
    (:mod:`hrnet_fast.reference.heads`).

    Raises:
        InputError: from forward, for another rank or channel count, an integer dtype, or a size that this network's
            upsampling cannot meet.
    """

    def __init__(self, config: HRNetConfig, norm_layer: NormFactory | None = None) -> None:
        super().__init__()
        self.config = config
        norm = norm_layer or norm_factory(config.norm)
        self.conv1 = nn.Conv2d(config.in_channels, config.stem_channels, 3, 2, 1, bias=False)
        self.bn1 = norm(config.stem_channels)
        self.conv2 = nn.Conv2d(config.stem_channels, config.stem_channels, 3, 2, 1, bias=False)
        self.bn2 = norm(config.stem_channels)
        self.relu = nn.ReLU(inplace=True)

        first = config.stages[0]
        self.layer1 = make_branch(first.block, config.stem_channels, first.channels[0], first.num_blocks[0], norm)
        for k, (before, stage) in enumerate(pairwise(config.stages), start=1):
            self.add_module(f"transition{k}", _make_transition(before.out_channels, stage, norm))
            self.add_module(f"stage{k + 1}", _make_stage(config, k, norm))

        # The head adds its layers here, under the authors' top-level names, and keeps no tensor itself.
        self._head = make_head(config)
        layers = self._head.layers(norm)
        self._head_names = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)

        self.reset_parameters()
        self.set_grad_checkpointing(config.gradient_checkpointing)
        self.train()

    def reset_parameters(self) -> None:
        """Draw fresh weights as ``config.init`` says; normalisations start as the identity."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                if self.config.init == "kaiming":
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (_BatchNorm, nn.GroupNorm)) and module.weight is not None:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if self.config.zero_init_residual:
            for module in self.modules():
                if isinstance(module, ResidualUnit):
                    weight = getattr(module.last_norm(), "weight", None)
                    if weight is not None:
                        nn.init.zeros_(weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every residual unit in backward (or stop doing so). Running statistics count a batch once."""
        for module in self.modules():
            if isinstance(module, ResidualUnit):
                module.gradient_checkpointing = enable

    def train(self, mode: bool = True) -> "HRNetReference":
        """Switch modes; ``norm_eval`` and ``frozen_stages`` keep their parts in evaluation mode, as mm* models do."""
        super().train(mode)
        if mode and self.config.norm_eval:
            for module in self._trunk_modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        for part in self._frozen_parts():
            part.eval()
            part.requires_grad_(False)
        return self

    def _trunk_modules(self) -> Iterator[nn.Module]:
        for name, child in self.named_children():
            if name not in self._head_names:
                yield from child.modules()

    def _frozen_parts(self) -> list[nn.Module]:
        last = self.config.frozen_stages
        names = ["conv1", "bn1", "conv2", "bn2"] if last >= 0 else []
        for k in range(1, last + 1):
            names += ["layer1" if k == 1 else f"stage{k}"]
            names += [f"transition{k}"] if k < len(self.config.stages) else []
        return [self.get_submodule(name) for name in names]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the branches after the last stage: [N, C_r, H / 2^(r+1), W / 2^(r+1)] for r = 1, 2, ..."""
        return self._branches(self._stem(self._checked(x))[1])

    def forward(self, x: Tensor) -> Output:
        x = self._checked(x)
        size = (x.shape[-2], x.shape[-1])
        half, x = self._stem(x)
        if not self._head.needs_stem:
            half = None  # else the largest map of the network would live until the end
        features = self._branches(x)
        if half is not None:
            features = [half, *features]
        return self._apply_head(features, size)

    def _apply_head(self, features: list[Tensor], size: tuple[int, int]) -> Output:
        return self._head(self, features, size)

    def _stem(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        half = self.relu(self.bn1(self.conv1(x)))
        return half, self.relu(self.bn2(self.conv2(half)))

    def _branches(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = [self.layer1(x)]
        for k in range(1, len(self.config.stages)):
            features = self._transition(k, features)
            features = getattr(self, f"stage{k + 1}")(features)
        return features

    def _transition(self, k: int, features: list[Tensor]) -> list[Tensor]:
        """Return the branches of stage k + 1; the new ones come from the last one before."""
        transition = cast(nn.ModuleList, self.get_submodule(f"transition{k}"))
        return [layer(features[i] if i < len(features) else features[-1]) for i, layer in enumerate(transition)]

    def _checked(self, x: Tensor) -> Tensor:
        by_scale = self.config.upsample_to == "scale"
        return checked_input(x, self.config.in_channels, 2 ** (self.config.stages[-1].num_branches - 1) * by_scale)


@torch.fx.wrap  # one node where torch.fx traces: it chooses by the input's shape
def checked_input(x: Tensor, channels: int, multiple: int) -> Tensor:
    """Return `x`, a floating [N, channels, H, W] whose map at 1/4 is a multiple of `multiple`, if that is not 0.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"HRNet: {shown(x)} given; accepted is a tensor [N, {channels}, H, W].")
    if x.dim() != 4 or x.shape[1] != channels:
        raise InputError(
            f"HRNet: input of shape {tuple(x.shape)} given; accepted is [N, {channels}, H, W]"
            + (" (add the batch dimension with x[None])." if x.dim() == 3 else ".")
        )
    if not torch.is_floating_point(x):
        raise InputError(f"HRNet: input of dtype {x.dtype} given; convert and normalise it to floating point.")
    if multiple and any(((s + 3) // 4) % multiple for s in x.shape[-2:]):
        raise InputError(
            f"HRNet: input of {x.shape[-2]}x{x.shape[-1]} given; this network upsamples by powers of two, so "
            f"pad height and width to multiples of {4 * multiple}, or build it with upsample_to='target'."
        )
    return x


def _make_transition(before: tuple[int, ...], stage: StageConfig, norm: NormFactory) -> nn.ModuleList:
    """Bring the branches in `before` to the stage's widths, and make new ones by stride-2 chains from the last."""
    layers: list[nn.Module] = []
    for i, channels in enumerate(stage.out_channels):
        if i < len(before):
            same = before[i] == channels
            layers.append(nn.Identity() if same else conv_norm(norm, before[i], channels, 3, relu=True))
            continue
        steps = i + 1 - len(before)
        chain = [conv_norm(norm, before[-1], before[-1], 3, 2, relu=True) for _ in range(steps - 1)]
        layers.append(nn.Sequential(*chain, conv_norm(norm, before[-1], channels, 3, 2, relu=True)))
    return nn.ModuleList(layers)


def _make_stage(config: HRNetConfig, index: int, norm: NormFactory) -> nn.Sequential:
    stage = config.stages[index]
    last_stage = index == len(config.stages) - 1
    modules: list[nn.Module] = []
    for m in range(stage.num_modules):
        last_module = m == stage.num_modules - 1
        final = last_stage and last_module
        fuse = {"final": final, "across": last_module, "within": True}[config.fusion_units]
        multiscale = config.multiscale_output or not final
        modules.append(HighResolutionModule(stage, config, norm, fuse=fuse, multiscale_output=multiscale))
    return nn.Sequential(*modules)
