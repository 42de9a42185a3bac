"""``HeadConfig``: the configuration of the layers after the last stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hrnet_fast.config.fields import (
    HEAD_ALIASES,
    HeadKind,
    as_tuple,
    check_fields,
    check_one_of,
    is_int,
    is_real,
)
from hrnet_fast.config.parts import DeconvConfig, NormConfig, as_norm, build_part
from hrnet_fast.errors import ConfigError, shown


@dataclass(frozen=True)
class HeadConfig:
    """The configuration of a head (paper, Figure 4, section 7 and Appendix B).

    Attributes:
        kind: ``"features"`` (bare branches), ``"v1"``, ``"v1h"``, ``"v2"`` (also the authors' segmentation head),
            ``"v2p"`` (detection pyramid), ``"ocr"``, ``"face"`` (``"v2"`` under the facial-landmark repository's
            names), ``"higher"`` (HigherHRNet: outputs at 1/4 and after every transposed convolution), ``"c"``,
            ``"ci"``, ``"cii"`` (classification).
        num_outputs: keypoints, classes or landmarks; 0 returns the representation itself (``v1``, ``v1h``, ``v2``
            and the classification heads).
        kernel_size: kernel size of the last convolution of ``v1``, ``v1h``, ``v2``, ``face`` and ``higher`` (1 or 3).
        mixing_kernel: kernel size of the convolution over the concatenation in ``v2``, ``face`` and OCR's auxiliary
            classifier: 1 (authors) or 3 (openseg.pytorch).
        mixing_channels: output channels of that convolution; 0 takes the number of its inputs.
        output_bias: whether the last convolution of ``v2`` and ``face`` has a bias.
        attention_bias: whether the convolutions of OCR's attention have a bias, as in openseg.pytorch.
        conv_bias: whether the head's convolutions before a normalisation have a bias. The authors' have one; those of
            the ``ssld`` classification files and of mmsegmentation do not.
        upsample_logits: upsample dense logits from 1/4 to the input's size (bilinear).
        out_indices: indices of the maps that ``"features"`` returns, in this order; ``None`` returns all.
        feature_location: ``""`` returns the branches; ``"incre"`` passes them through the classification head's
            widening units first and counts the stem's first map (1/2) as index 0, as timm's ``features_only``.
        channels: width of the ``v2p`` levels, or of the OCR representation.
        key_channels: width of the OCR attention.
        num_levels: levels of ``"v2p"``.
        pyramid_stride: stride of the 3x3 convolutions of ``"v2p"`` (2 in mmdetection's FCOS, with levels from 1/8).
        pyramid_norm: normalisation after the convolutions of ``"v2p"``, which then have no bias; ``None`` for
            none. A kind alone is accepted.
        pyramid_pool: pooling between the levels of ``"v2p"``, ``"avg"`` or ``"max"``.
        deconvs: steps of ``"higher"`` after the first outputs.
        tags: additional channels for grouping (associative embedding) of each output of ``"higher"``; the i-th output
            has ``num_outputs + tags[i]`` channels. Empty means none.
        ocr_outputs: ``"both"`` returns ``[auxiliary, main]`` as the authors do, ``"tuple"`` the same as a tuple, as
            openseg.pytorch does, ``"main"`` the main logits alone.
        dropout: probability before the classifier (classification, OCR, and whole channels in ``v2`` and ``face``).
    """

    kind: HeadKind = "v1"
    num_outputs: int = 0
    kernel_size: int = 1
    mixing_kernel: int = 1
    mixing_channels: int = 0
    conv_bias: bool = True
    output_bias: bool = True
    attention_bias: bool = False
    upsample_logits: bool = False
    out_indices: tuple[int, ...] | None = None
    feature_location: Literal["", "incre"] = ""
    channels: int = 0
    key_channels: int = 256
    num_levels: int = 5
    pyramid_stride: int = 1
    pyramid_norm: NormConfig | None = None
    pyramid_pool: Literal["avg", "max"] = "avg"
    deconvs: tuple[DeconvConfig, ...] = ()
    tags: tuple[int, ...] = ()
    ocr_outputs: Literal["both", "tuple", "main"] = "both"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.kind, str):
            object.__setattr__(self, "kind", HEAD_ALIASES.get(self.kind, self.kind))
        if is_int(self.channels) and self.channels == 0:
            object.__setattr__(self, "channels", 512 if self.kind == "ocr" else 256)
        check_fields(self, from_zero=("num_outputs", "mixing_channels"), apart=("kernel_size", "mixing_kernel"))
        check_one_of("HeadConfig", "kernel_size", self.kernel_size, (1, 3))
        check_one_of("HeadConfig", "mixing_kernel", self.mixing_kernel, (1, 3))
        object.__setattr__(self, "pyramid_norm", as_norm(self.pyramid_norm))
        if self.pyramid_norm is not None and not isinstance(self.pyramid_norm, NormConfig):
            raise ConfigError(
                f"HeadConfig: pyramid_norm={shown(self.pyramid_norm)} must be a NormConfig, its kind or None."
            )
        given = as_tuple("HeadConfig", "deconvs", self.deconvs)
        steps = tuple(build_part(DeconvConfig, step) if isinstance(step, Mapping) else step for step in given)
        if not all(isinstance(step, DeconvConfig) for step in steps):
            raise ConfigError(f"HeadConfig: deconvs={shown(self.deconvs)} must be a sequence of DeconvConfig.")
        object.__setattr__(self, "deconvs", steps)
        self._check_tags()
        if self.out_indices is not None:
            object.__setattr__(self, "out_indices", as_tuple("HeadConfig", "out_indices", self.out_indices))
        if self.num_outputs == 0 and self.kind in ("ocr", "face", "higher"):
            raise ConfigError(
                f"HeadConfig: the {self.kind!r} head needs outputs; give num_outputs (classes, landmarks "
                "or keypoints), or take head='v2' or 'features' for a representation."
            )
        if not (is_real(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise ConfigError(f"HeadConfig: dropout={shown(self.dropout)} must lie in [0, 1).")

    def _check_tags(self) -> None:
        outputs = 1 + len(self.deconvs)
        tags = as_tuple("HeadConfig", "tags", self.tags)
        if self.kind == "higher":
            tags = tags or (0,) * outputs
        if any(not is_int(t) or t < 0 for t in tags) or (tags and len(tags) != outputs):
            raise ConfigError(
                f"HeadConfig: tags={shown(self.tags)} must be {outputs} integers of at least 0, one for the first "
                f"output and one for each of the {len(self.deconvs)} deconvs."
            )
        object.__setattr__(self, "tags", tags)
