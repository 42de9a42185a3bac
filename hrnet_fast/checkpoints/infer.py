"""Inference of a network's configuration from the keys and shapes of a canonical state_dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hrnet_fast.config import BlockKind, DeconvConfig, HeadConfig, HRNetConfig, NormConfig, StageConfig
from hrnet_fast.errors import CheckpointError

Shape = tuple[int, ...]

# The 1x1 convolution after a bilinear reduction; the keys of a strided chain have one more number.
_POINTWISE_DOWN = re.compile(r"stage\d+\.\d+\.fuse_layers\.1\.0\.0\.weight$")


class StateShapes:
    """Keys and shapes of a state_dict, indexed by prefix."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = dict(shapes)
        self._prefixes: set[str] = set()
        self._children: dict[str, set[int]] = {}
        for key in self.shapes:
            parts = key.split(".")
            for i in range(1, len(parts)):
                prefix = ".".join(parts[:i])
                self._prefixes.add(prefix)
                if parts[i].isdecimal() and len(parts[i]) < 4:
                    self._children.setdefault(prefix, set()).add(int(parts[i]))

    def has(self, prefix: str) -> bool:
        return prefix in self._prefixes or prefix in self.shapes

    def count(self, prefix: str) -> int:
        """Return the number of distinct numbered children, so that a stray index becomes an unexpected key."""
        return len(self._children.get(prefix, ()))

    def size(self, key: str, dim: int, rank: int) -> int:
        """Return one dimension of a required tensor.

        Raises:
            CheckpointError: the tensor is missing or has another rank.
        """
        shape = self.shapes.get(key)
        if shape is None:
            raise CheckpointError(
                f"The checkpoint lacks {key}, which determines the network's shape: the file is incomplete, or from a "
                "code base that this package does not read.",
                missing=(key,),
            )
        if len(shape) != rank or 0 in shape:
            raise CheckpointError(
                f"{key} has shape {list(shape)}; expected is a tensor of rank {rank} without empty dimensions.",
                mismatched=((key, shape, (-1,) * rank),),
            )
        return shape[dim]


def infer_config(shapes: Mapping[str, Shape], **defaults: Any) -> HRNetConfig:
    """Return the network whose canonical state_dict has these shapes.

    Args:
        shapes: shape of each entry under its canonical name.
        defaults: fields of :class:`HRNetConfig` and :class:`HeadConfig` that a state_dict does not contain
            (interpolation, momentum, dropout).

    Raises:
        CheckpointError: a key that determines the network's shape is missing.
        ConfigError: no network has these shapes.
    """
    s = StateShapes(shapes)
    stages = [_infer_first_stage(s)]
    k = 2
    while s.has(f"stage{k}"):
        stages.append(_infer_stage(s, f"stage{k}"))
        k += 1
    last = stages[-1]
    fuse = f"stage{k - 1}.{last.num_modules - 1}.fuse_layers"
    options: dict[str, Any] = {
        "in_channels": s.size("conv1.weight", 1, 4),
        "stem_channels": s.size("conv1.weight", 0, 4),
        "multiscale_output": last.num_branches == 1 or s.count(fuse) != 1,
        "fusion_units": _infer_fusion_units(s, stages),
        "downsample": "bilinear" if any(_POINTWISE_DOWN.match(key) for key in s.shapes) else "strided",
    }
    if not any(key.endswith(".running_mean") and not key.startswith("neck.") for key in s.shapes):
        options["norm"] = NormConfig("gn")
    return HRNetConfig(tuple(stages), infer_head(s), **options).override(**defaults)


def _infer_first_stage(s: StateShapes) -> StageConfig:
    block: BlockKind = "bottleneck" if s.has("layer1.0.conv3") else "basic"
    return StageConfig((s.size("layer1.0.conv1.weight", 0, 4),), (max(1, s.count("layer1")),), 1, block)


def _infer_stage(s: StateShapes, name: str) -> StageConfig:
    branches = s.count(f"{name}.0.branches")
    first = [f"{name}.0.branches.{b}" for b in range(branches)]
    block: BlockKind = "bottleneck" if s.has(f"{name}.0.branches.0.0.conv3") else "basic"
    return StageConfig(
        tuple(s.size(f"{branch}.0.conv1.weight", 0, 4) for branch in first),
        tuple(max(1, s.count(branch)) for branch in first),
        max(1, s.count(name)),
        block,
    )


def _infer_fusion_units(s: StateShapes, stages: list[StageConfig]) -> str:
    """Which modules fuse: all, the last of every stage, or the very last (Table 12)."""

    def fuses(k: int, module: int) -> bool:
        return s.has(f"stage{k}.{module}.fuse_layers")

    across = [
        fuses(k, stage.num_modules - 1) for k, stage in enumerate(stages[1:-1], start=2) if stage.num_branches > 1
    ]
    within = [
        fuses(k, m)
        for k, stage in enumerate(stages[1:], start=2)
        for m in range(stage.num_modules - 1)
        if stage.num_branches > 1
    ]
    if across and not any(across):
        return "final"
    return "across" if within and not any(within) else "within"


def _infer_mixing(s: StateShapes, name: str) -> dict[str, Any]:
    """Return kernel size and output channels (0: as many as inputs) of the convolution over the concatenation."""
    weight = f"{name}.0.weight"
    width, inputs = s.size(weight, 0, 4), s.size(weight, 1, 4)
    return {"mixing_kernel": s.size(weight, 2, 4), "mixing_channels": 0 if width == inputs else width}


def infer_head(s: StateShapes) -> HeadConfig:
    """Return the head that the keys outside the trunk belong to."""

    def dense(kind: Any, name: str) -> HeadConfig:
        last = f"{name}.3.weight"
        outputs = s.size(last, 0, 4) if s.has(last) or kind == "face" else 0
        return HeadConfig(
            kind,
            outputs,
            s.size(last, 2, 4) if outputs else 1,
            conv_bias=s.has(f"{name}.0.bias"),
            output_bias=not outputs or s.has(f"{name}.3.bias"),
            **_infer_mixing(s, name),
        )

    if s.has("ocr_distri_head"):
        return HeadConfig(
            "ocr",
            s.size("cls_head.weight", 0, 4),
            conv_bias=s.has("conv3x3_ocr.0.bias"),
            channels=s.size("conv3x3_ocr.0.weight", 0, 4),
            key_channels=s.size("ocr_distri_head.object_context_block.f_pixel.0.weight", 0, 4),
            attention_bias=s.has("ocr_distri_head.object_context_block.f_pixel.0.bias"),
            **_infer_mixing(s, "aux_head"),
        )
    if s.has("neck"):
        return _infer_pyramid(s)
    if s.has("final_layers"):
        return _infer_higher_head(s)
    if s.has("last_layer"):
        return dense("v2", "last_layer")
    if s.has("head"):
        return dense("face", "head")
    outputs = s.size("classifier.weight", 0, 2) if s.has("classifier") else 0
    if s.has("downsamp_modules") or s.has("final_layer.0"):
        return HeadConfig("c", outputs, conv_bias=s.has("final_layer.0.bias"))
    if s.has("incre_modules"):
        if s.has("classifier") or s.count("incre_modules.0") > 1:
            return HeadConfig("cii", outputs)
        return HeadConfig("features", feature_location="incre")
    if s.has("classifier"):
        return HeadConfig("ci", outputs)
    if s.has("final_layer") or s.has("expand_layer"):
        kind = "v1h" if s.has("expand_layer") else "v1"
        bias = kind == "v1" or s.has("expand_layer.0.bias")
        outputs = s.size("final_layer.weight", 0, 4) if s.has("final_layer") else 0
        kernel = s.size("final_layer.weight", 2, 4) if outputs else 1
        return HeadConfig(kind, outputs, kernel, conv_bias=bias)  # type: ignore[arg-type]
    return HeadConfig("features")


def _infer_pyramid(s: StateShapes) -> HeadConfig:
    """Return the head of a detection neck; its stride and pooling are not in its keys."""
    norm = None
    for name, kind in (("gn", "gn"), ("bn", "bn")):
        if s.has(f"neck.reduction_conv.{name}") or s.has(f"neck.fpn_convs.0.{name}"):
            norm = NormConfig(kind)  # type: ignore[arg-type]
    channels = s.size("neck.reduction_conv.conv.weight", 0, 4)
    return HeadConfig("v2p", channels=channels, num_levels=max(1, s.count("neck.fpn_convs")), pyramid_norm=norm)


def _infer_higher_head(s: StateShapes) -> HeadConfig:
    """Return HigherHRNet's head. An output without tags has one channel per keypoint; tags add channels."""
    steps = s.count("deconv_layers")
    outputs = [s.size(f"final_layers.{i}.weight", 0, 4) for i in range(1 + steps)]
    widths = [s.size(f"final_layers.{i}.weight", 1, 4) for i in range(1 + steps)]
    deconvs = tuple(
        DeconvConfig(
            widths[i + 1],
            s.size(f"deconv_layers.{i}.0.0.weight", 2, 4),
            max(0, s.count(f"deconv_layers.{i}") - 1),
            concat=s.size(f"deconv_layers.{i}.0.0.weight", 0, 4) > widths[i],
        )
        for i in range(steps)
    )
    keypoints = min(outputs)
    tags = tuple(channels - keypoints for channels in outputs)
    return HeadConfig("higher", keypoints, s.size("final_layers.0.weight", 2, 4), deconvs=deconvs, tags=tags)
