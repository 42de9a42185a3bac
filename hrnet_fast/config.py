"""The one description of a network: everything that decides its layers and its numbers.

All networks of the paper and of the upstream code bases are values of :class:`HRNetConfig`; the ablations of
section 7 are fields, not forks. The classes are frozen dataclasses, checked when made, and go to and from plain
dictionaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

from hrnet_fast.errors import ConfigError, shown

BlockKind = Literal["basic", "bottleneck"]
NormKind = Literal["bn", "syncbn", "gn", "frozen"]
HeadKind = Literal["features", "v1", "v1h", "v2", "v2p", "ocr", "face", "higher", "c", "ci", "cii"]
UpsampleMode = Literal["nearest", "bilinear"]
UpsampleTo = Literal["scale", "target", "scale_then_target"]

EXPANSION: dict[str, int] = {"basic": 1, "bottleneck": 4}
HEAD_ALIASES: dict[str, HeadKind] = {
    "pose": "v1",
    "seg": "v2",
    "segmentation": "v2",
    "seg_ocr": "ocr",
    "detection": "v2p",
    "hrfpn": "v2p",
    "classification": "c",
    "landmarks": "face",
    "bottom_up": "higher",
}
CLASSIFICATION_HEADS = ("c", "ci", "cii")
# Kinds of heads that read a field of HeadConfig.
READ_BY: dict[str, tuple[str, ...]] = {
    "num_outputs": ("v1", "v1h", "v2", "ocr", "face", "higher", *CLASSIFICATION_HEADS),
    "kernel_size": ("v1", "v1h", "v2", "face", "higher"),
    "mixing_kernel": ("v2", "face", "ocr"),
    "mixing_channels": ("v2", "face", "ocr"),
    "conv_bias": ("v1h", "v2", "face", "ocr", "c"),
    "output_bias": ("v2", "face"),
    "attention_bias": ("ocr",),
    "upsample_logits": ("v1", "v1h", "v2", "face", "ocr", "higher"),
    "out_indices": ("features",),
    "feature_location": ("features",),
    "channels": ("v2p", "ocr"),
    "key_channels": ("ocr",),
    "num_levels": ("v2p",),
    "pyramid_stride": ("v2p",),
    "pyramid_norm": ("v2p",),
    "pyramid_pool": ("v2p",),
    "deconvs": ("higher",),
    "tags": ("higher",),
    "ocr_outputs": ("ocr",),
    "dropout": ("v2", "face", "ocr", *CLASSIFICATION_HEADS),
}


def _one_of(owner: str, name: str, value: object, accepted: tuple[object, ...]) -> None:
    if isinstance(value, bool) or not any(isinstance(value, type(one)) and value == one for one in accepted):
        raise ConfigError(f"{owner}: {name}={shown(value)} is not one of {', '.join(map(repr, accepted))}.")


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _positive(owner: str, **values: int) -> None:
    for name, value in values.items():
        if not _integer(value) or value < 1:
            raise ConfigError(f"{owner}: {name}={shown(value)} must be an integer of at least 1.")


def _boolean(owner: str, **values: bool) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{owner}: {name}={shown(value)} must be True or False.")


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _listed(owner: str, name: str, value: object) -> tuple[Any, ...]:
    """Return a sequence as a tuple."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise ConfigError(f"{owner}: {name}={shown(value)} must be a sequence, one entry for each.")
    return tuple(value)


@dataclass(frozen=True)
class StageConfig:
    """One stage: `num_modules` modularized blocks of parallel branches (paper, section 3.4 and Table 14).

    Attributes:
        channels: planes of each branch's residual units, highest resolution first. A bottleneck's output is four
            times as wide.
        num_blocks: residual units per branch and module.
        num_modules: modularized blocks in the stage.
        block: residual unit, two 3x3 convolutions (``"basic"``) or ``"bottleneck"``.
    """

    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    num_modules: int = 1
    block: BlockKind = "basic"

    def __post_init__(self) -> None:
        for name in ("channels", "num_blocks"):
            object.__setattr__(self, name, _listed("StageConfig", name, getattr(self, name)))
        _one_of("StageConfig", "block", self.block, get_args(BlockKind))
        _positive("StageConfig", num_modules=self.num_modules)
        if not self.channels or len(self.channels) != len(self.num_blocks):
            raise ConfigError(
                f"StageConfig: channels={self.channels} and num_blocks={self.num_blocks} must name the same, "
                "non-empty set of branches: give one entry per branch in each."
            )
        for i, (c, b) in enumerate(zip(self.channels, self.num_blocks, strict=True)):
            _positive("StageConfig", **{f"channels[{i}]": c, f"num_blocks[{i}]": b})

    @property
    def num_branches(self) -> int:
        return len(self.channels)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels that each branch hands on."""
        return tuple(c * EXPANSION[self.block] for c in self.channels)


@dataclass(frozen=True)
class NormConfig:
    """The normalisation that follows every convolution.

    Attributes:
        kind: ``"bn"``, ``"syncbn"`` (statistics over all processes), ``"gn"`` (group normalisation) or ``"frozen"``
            (batch normalisation whose scale, shift and statistics are buffers).
        momentum: running-statistics momentum of batch normalisation; ``None`` is the cumulative average.
        eps: added to the variance.
        groups: groups of ``"gn"``; every normalised width must be a multiple of it.
    """

    kind: NormKind = "bn"
    momentum: float | None = 0.1
    eps: float = 1e-5
    groups: int = 32

    def __post_init__(self) -> None:
        _one_of("NormConfig", "kind", self.kind, get_args(NormKind))
        _positive("NormConfig", groups=self.groups)
        if self.momentum is not None and not (_number(self.momentum) and 0.0 <= self.momentum <= 1.0):
            raise ConfigError(
                f"NormConfig: momentum={shown(self.momentum)} must lie in [0, 1] or be None (cumulative)."
            )
        if not (_number(self.eps) and self.eps > 0.0):
            raise ConfigError(f"NormConfig: eps={shown(self.eps)} must be positive.")


@dataclass(frozen=True)
class DeconvConfig:
    """One step of the ``"higher"`` head: twice the resolution, then residual units and outputs there.

    Attributes:
        channels: width of the transposed convolution's output and of the residual units.
        kernel_size: of the transposed convolution of stride 2 (2, 3 or 4).
        num_blocks: basic residual units after it.
        concat: whether the step before hands on its outputs beside its features.
    """

    channels: int
    kernel_size: int = 4
    num_blocks: int = 4
    concat: bool = True

    def __post_init__(self) -> None:
        _positive("DeconvConfig", channels=self.channels)
        _one_of("DeconvConfig", "kernel_size", self.kernel_size, (2, 3, 4))
        _boolean("DeconvConfig", concat=self.concat)
        if not _integer(self.num_blocks) or self.num_blocks < 0:
            raise ConfigError(f"DeconvConfig: num_blocks={shown(self.num_blocks)} must be an integer of at least 0.")


@dataclass(frozen=True)
class HeadConfig:
    """What follows the last stage (paper, Figure 4, section 7 and Appendix B).

    Attributes:
        kind: ``"features"`` (bare branches), ``"v1"``, ``"v1h"``, ``"v2"`` (also the authors' segmentation head),
            ``"v2p"`` (detection pyramid), ``"ocr"``, ``"face"`` (``"v2"`` under the facial-landmark repository's
            names), ``"higher"`` (HigherHRNet: outputs at 1/4 and after every transposed convolution), ``"c"``,
            ``"ci"``, ``"cii"`` (classification).
        num_outputs: keypoints, classes or landmarks; 0 returns the representation itself (``v1``, ``v1h``, ``v2``
            and the classification heads).
        kernel_size: of the last convolution of ``v1``, ``v1h``, ``v2``, ``face`` and ``higher`` (1 or 3).
        mixing_kernel: of the convolution over the concatenation in ``v2``, ``face`` and OCR's auxiliary classifier: 1
            as the authors have it, 3 as openseg.pytorch.
        mixing_channels: outputs of that convolution; 0 is as many as its inputs.
        output_bias: whether the last convolution of ``v2`` and ``face`` has a bias.
        attention_bias: whether the convolutions of OCR's attention have a bias, as openseg.pytorch's do.
        conv_bias: whether the head's convolutions that stand before a normalisation have a bias. The authors' do;
            the ``ssld`` classification files and mmsegmentation's heads do not.
        upsample_logits: upsample dense logits from 1/4 to the input's size (bilinear).
        out_indices: which maps ``"features"`` returns, in this order; ``None`` is all of them.
        feature_location: ``""`` returns the branches; ``"incre"`` passes them through the classification head's
            widening units first and counts the stem's first map (1/2) as index 0, as timm's ``features_only``.
        channels: width of the ``v2p`` levels, or of the OCR representation.
        key_channels: width of the OCR attention.
        num_levels: levels of ``"v2p"``.
        pyramid_stride: stride of the 3x3 convolutions of ``"v2p"`` (2 in mmdetection's FCOS: levels from 1/8 on).
        pyramid_norm: normalisation after the convolutions of ``"v2p"``, which then have no bias; ``None`` is none. A
            kind alone may be given.
        pyramid_pool: what makes the levels of ``"v2p"``, ``"avg"`` or ``"max"`` pooling.
        deconvs: steps of ``"higher"`` after the first outputs.
        tags: channels for grouping (associative embedding) beside the keypoints, of each output of ``"higher"``; the
            i-th has ``num_outputs + tags[i]`` channels. Empty: none has any.
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
        _one_of("HeadConfig", "kind", self.kind, get_args(HeadKind))
        _one_of("HeadConfig", "kernel_size", self.kernel_size, (1, 3))
        _one_of("HeadConfig", "mixing_kernel", self.mixing_kernel, (1, 3))
        _one_of("HeadConfig", "feature_location", self.feature_location, ("", "incre"))
        _one_of("HeadConfig", "ocr_outputs", self.ocr_outputs, ("both", "tuple", "main"))
        _one_of("HeadConfig", "pyramid_pool", self.pyramid_pool, ("avg", "max"))
        _positive("HeadConfig", num_levels=self.num_levels, key_channels=self.key_channels)
        _positive("HeadConfig", pyramid_stride=self.pyramid_stride)
        _boolean("HeadConfig", conv_bias=self.conv_bias, upsample_logits=self.upsample_logits)
        _boolean("HeadConfig", output_bias=self.output_bias, attention_bias=self.attention_bias)
        object.__setattr__(self, "pyramid_norm", _norm(self.pyramid_norm))
        if self.pyramid_norm is not None and not isinstance(self.pyramid_norm, NormConfig):
            raise ConfigError(
                f"HeadConfig: pyramid_norm={shown(self.pyramid_norm)} must be a NormConfig, its kind or None."
            )
        given = _listed("HeadConfig", "deconvs", self.deconvs)
        steps = tuple(_made(DeconvConfig, step) if isinstance(step, Mapping) else step for step in given)
        if not all(isinstance(step, DeconvConfig) for step in steps):
            raise ConfigError(f"HeadConfig: deconvs={shown(self.deconvs)} must be a sequence of DeconvConfig.")
        object.__setattr__(self, "deconvs", steps)
        self._check_tags()
        if _integer(self.channels) and self.channels == 0:
            object.__setattr__(self, "channels", 512 if self.kind == "ocr" else 256)
        _positive("HeadConfig", channels=self.channels)
        if not _integer(self.mixing_channels) or self.mixing_channels < 0:
            raise ConfigError(
                f"HeadConfig: mixing_channels={shown(self.mixing_channels)} must be an integer of at least 0."
            )
        if self.out_indices is not None:
            object.__setattr__(self, "out_indices", _listed("HeadConfig", "out_indices", self.out_indices))
        if not _integer(self.num_outputs) or self.num_outputs < 0:
            raise ConfigError(f"HeadConfig: num_outputs={shown(self.num_outputs)} must be an integer of at least 0.")
        if self.num_outputs == 0 and self.kind in ("ocr", "face", "higher"):
            raise ConfigError(
                f"HeadConfig: the {self.kind!r} head has no use without outputs; give num_outputs (classes, landmarks "
                "or keypoints), or take head='v2' or 'features' for a representation."
            )
        if not (_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise ConfigError(f"HeadConfig: dropout={shown(self.dropout)} must lie in [0, 1).")

    def _check_tags(self) -> None:
        outputs = 1 + len(self.deconvs)
        tags = _listed("HeadConfig", "tags", self.tags)
        if self.kind == "higher":
            tags = tags or (0,) * outputs
        if any(not _integer(t) or t < 0 for t in tags) or (tags and len(tags) != outputs):
            raise ConfigError(
                f"HeadConfig: tags={shown(self.tags)} must be {outputs} integers of at least 0, one for the first "
                f"output and one for each of the {len(self.deconvs)} deconvs."
            )
        object.__setattr__(self, "tags", tags)


def _made(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A configuration of a mapping of its fields."""
    try:
        return kind(**fields)
    except TypeError:
        accepted = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ConfigError(f"{kind.__name__}: {shown(dict(fields))} given; its fields are {accepted}.") from None


def _norm(value: Any) -> NormConfig | None:
    """A normalisation, given as such, by its kind or as :meth:`HRNetConfig.to_dict` has it."""
    if isinstance(value, str):
        return NormConfig(kind=value)  # type: ignore[arg-type]
    made: NormConfig | None = _made(NormConfig, value) if isinstance(value, Mapping) else value
    return made


@dataclass(frozen=True)
class HRNetConfig:
    """A whole network: stem, stages, fusion, normalisation and head.

    Attributes:
        stages: four stages in the paper's networks; the first is the single-branch ``layer1``. Branch counts never
            shrink. Giving every later stage four branches is section 7's "resolution maintenance".
        in_channels: channels of the input image.
        stem_channels: width of the two stride-2 3x3 convolutions of the stem.
        upsample: interpolation inside the fusion.
        align_corners: of every bilinear interpolation in this network.
        upsample_to: how the fusion finds the upsampled size. ``"scale"``: times 2^k, as the nearest families do
            (sizes must match, else :class:`~hrnet_fast.errors.InputError`); ``"target"``: the target's own size;
            ``"scale_then_target"``: the first, then a second interpolation where sizes differ (mmsegmentation).
        fusion: combine the fused terms by ``"sum"`` or ``"product"`` (section 7).
        fusion_units: ``"final"``, ``"across"`` or ``"within"``: Table 12's (a), (b) and (c).
        downsample: ``"strided"`` 3x3 convolutions, or ``"bilinear"`` reduction and a 1x1 convolution (section 7).
        multiscale_output: whether the last fusion makes all resolutions or only the highest.
        norm: normalisation layers.
        norm_eval: keep the batch statistics of stem, stages and transitions frozen in training mode.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the stages up to k.
        zero_init_residual: start each residual unit as the identity (last scale 0).
        gradient_checkpointing: recompute residual units in backward.
        init: ``"normal"`` (std 0.001, the authors' dense heads) or ``"kaiming"`` (fan-out, classification, mm*).
        head: what follows the last stage.
    """

    stages: tuple[StageConfig, ...]
    head: HeadConfig = field(default_factory=HeadConfig)
    in_channels: int = 3
    stem_channels: int = 64
    upsample: UpsampleMode = "nearest"
    align_corners: bool = False
    upsample_to: UpsampleTo = "scale"
    fusion: Literal["sum", "product"] = "sum"
    fusion_units: Literal["final", "across", "within"] = "within"
    downsample: Literal["strided", "bilinear"] = "strided"
    multiscale_output: bool = True
    norm: NormConfig = field(default_factory=NormConfig)
    norm_eval: bool = False
    frozen_stages: int = -1
    zero_init_residual: bool = False
    gradient_checkpointing: bool = False
    init: Literal["normal", "kaiming"] = "normal"

    def __post_init__(self) -> None:
        owner = "HRNetConfig"
        object.__setattr__(self, "stages", _listed(owner, "stages", self.stages))
        parts = [("stages", StageConfig, one) for one in self.stages]
        for name, kind, part in (*parts, ("head", HeadConfig, self.head), ("norm", NormConfig, self.norm)):
            if not isinstance(part, kind):
                raise ConfigError(f"{owner}: {name} has {shown(part)} where a {kind.__name__} belongs.")
        names = ("align_corners", "multiscale_output", "norm_eval", "zero_init_residual", "gradient_checkpointing")
        _boolean(owner, **{name: getattr(self, name) for name in names})
        _positive(owner, in_channels=self.in_channels, stem_channels=self.stem_channels)
        _one_of(owner, "upsample", self.upsample, get_args(UpsampleMode))
        _one_of(owner, "upsample_to", self.upsample_to, get_args(UpsampleTo))
        _one_of(owner, "fusion", self.fusion, ("sum", "product"))
        _one_of(owner, "fusion_units", self.fusion_units, ("final", "across", "within"))
        _one_of(owner, "downsample", self.downsample, ("strided", "bilinear"))
        _one_of(owner, "init", self.init, ("normal", "kaiming"))
        if len(self.stages) < 2:
            raise ConfigError(f"{owner}: {len(self.stages)} stage(s) given; a network needs at least two.")
        if self.stages[0].num_branches != 1 or self.stages[0].num_modules != 1:
            raise ConfigError(f"{owner}: the first stage is one module of one branch, not {self.stages[0]}.")
        branches = [stage.num_branches for stage in self.stages]
        if branches != sorted(branches):
            raise ConfigError(f"{owner}: branches per stage {branches} must not shrink.")
        if not _integer(self.frozen_stages) or not -1 <= self.frozen_stages <= len(self.stages):
            raise ConfigError(
                f"{owner}: frozen_stages={shown(self.frozen_stages)} must be an integer between -1 (none) and "
                f"{len(self.stages)}."
            )
        reads_all = self.head.kind not in ("v1", "v1h", "higher", "features") or self.head.feature_location == "incre"
        if not self.multiscale_output and reads_all:
            raise ConfigError(
                f"{owner}: multiscale_output=False leaves one resolution, but the {self.head.kind!r} head reads all; "
                "take multiscale_output=True or head='v1'."
            )
        self._check_out_indices(branches[-1])

    def _check_out_indices(self, branches: int) -> None:
        indices = self.head.out_indices
        if indices is None:
            return
        maps = (branches if self.multiscale_output else 1) + (self.head.feature_location == "incre")
        if (
            not indices
            or any(not _integer(i) or not 0 <= i < maps for i in indices)
            or len(set(indices)) != len(indices)
        ):
            raise ConfigError(
                f"HeadConfig: out_indices={indices} must be distinct indices from 0 to {maps - 1}, the maps that "
                "this network makes."
            )

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the branches after the last stage, highest resolution first."""
        return self.stages[-1].out_channels

    @property
    def bilinear(self) -> bool:
        """Whether this network interpolates bilinearly anywhere, so that ``align_corners`` counts."""
        concatenates = self.head.kind in ("v2", "v2p", "ocr", "face")
        fusions = "bilinear" in (self.upsample, self.downsample) or self.upsample_to == "scale_then_target"
        logits = self.head.upsample_logits and self.head.kind in READ_BY["upsample_logits"]
        return concatenates or fusions or logits

    @classmethod
    def make(
        cls,
        width: int = 32,
        head: str = "v1",
        num_outputs: int = 0,
        *,
        block: BlockKind = "basic",
        num_blocks: int = 4,
        num_modules: tuple[int, int, int] = (1, 4, 3),
        num_branches: tuple[int, int, int] = (2, 3, 4),
        stage1_channels: int = 64,
        stage1_blocks: int = 4,
        **overrides: Any,
    ) -> HRNetConfig:
        """Describe a network of the paper by its width C (section 3.4: branches of C, 2C, 4C and 8C channels).

        Defaults follow the head: pose (``v1``) interpolates nearest and ends in one resolution, as the authors' pose
        net; so does ``higher``, with one transposed convolution as wide as the first branch and a tag per keypoint
        at 1/4; ``v2``, ``ocr`` and ``face`` interpolate bilinearly to the target's size; classification and ``v2p``
        interpolate nearest. `overrides` are fields of :class:`HRNetConfig`, :class:`HeadConfig` or (``bn_momentum``)
        :class:`NormConfig`.

        Args:
            width: C, the output channels of the highest-resolution branch; with ``block="bottleneck"`` its planes
                are ``width // 4`` (Table 15's lower half).
            head: a head kind or one of its aliases (``"pose"``, ``"segmentation"``, ``"detection"``, ...).
            num_outputs: keypoints, classes or landmarks.

        Raises:
            ConfigError: a value out of range, or an unknown field.
        """
        _positive("HRNetConfig.make", width=width, num_blocks=num_blocks, stage1_channels=stage1_channels)
        _one_of("HRNetConfig.make", "block", block, get_args(BlockKind))
        planes = width // EXPANSION[block]
        _positive("HRNetConfig.make", planes=planes)
        stages = [StageConfig((stage1_channels,), (stage1_blocks,), 1, "bottleneck")]
        num_modules = _listed("HRNetConfig.make", "num_modules", num_modules)  # type: ignore[assignment]
        num_branches = _listed("HRNetConfig.make", "num_branches", num_branches)  # type: ignore[assignment]
        if len(num_modules) != len(num_branches):
            raise ConfigError(
                f"HRNetConfig.make: num_modules={num_modules} and num_branches={num_branches} must name equally "
                "many stages."
            )
        for modules, branches in zip(num_modules, num_branches, strict=True):
            _positive("HRNetConfig.make", num_branches=branches)
            channels = tuple(planes * 2**i for i in range(branches))
            stages.append(StageConfig(channels, (num_blocks,) * branches, modules, block))
        config = cls(tuple(stages), **_head_defaults(head, num_outputs, width))
        return config.override(**overrides)

    def override(self, **changes: Any) -> HRNetConfig:
        """Return a copy with fields of this class, of its head or its norm changed (``norm`` fields as ``norm_kind``,
        ``norm_eps``, ``norm_groups`` and ``bn_momentum``).

        Raises:
            ConfigError: an unknown name, or a combination that no network can have.
        """
        top = {f.name for f in dataclasses.fields(self)}
        head = {f.name for f in dataclasses.fields(HeadConfig)} - {"kind"}
        norm = {"bn_momentum": "momentum", "norm_kind": "kind", "norm_eps": "eps", "norm_groups": "groups"}
        unknown = sorted(set(changes) - top - head - set(norm))
        if unknown:
            raise ConfigError(
                f"HRNetConfig: unknown option(s) {', '.join(unknown)}; accepted are "
                f"{', '.join(sorted(top | head | set(norm)))}."
            )
        if self.head.kind == "higher" and "num_outputs" in changes and "tags" not in changes:
            # Associative embedding has one tag for each keypoint.
            changed = changes["num_outputs"]
            changes["tags"] = tuple(changed if tag == self.head.num_outputs else tag for tag in self.head.tags)
        own = {k: v for k, v in changes.items() if k in top}
        for name, kind, names in (("head", HeadConfig, {h: h for h in head}), ("norm", NormConfig, norm)):
            part = {names[k]: v for k, v in changes.items() if k in names}
            whole = own.pop(name, getattr(self, name))
            if isinstance(whole, str):  # a kind; its fields may change along with it
                part, whole = {"kind": whole, **part}, getattr(self, name)
            own[name] = dataclasses.replace(whole, **part) if isinstance(whole, kind) else whole  # else refused below
        return dataclasses.replace(self, **own)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and scalars that :meth:`from_dict` takes back and JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HRNetConfig:
        """Rebuild a configuration from :meth:`to_dict`.

        Raises:
            ConfigError: unknown fields or values.
        """
        try:
            values = dict(data)
            values["stages"] = tuple(StageConfig(**stage) for stage in values["stages"])
            values["head"] = HeadConfig(**values.get("head", {}))
            values["norm"] = NormConfig(**values.get("norm", {}))
            return cls(**values)
        except ConfigError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"HRNetConfig.from_dict: {error}; give what to_dict returned.") from error


def _head_defaults(head: str, num_outputs: int, width: int) -> dict[str, Any]:
    """Fields of HRNetConfig that follow from the head, as the authors' repository for that task has them."""
    kind = HEAD_ALIASES.get(head, head) if isinstance(head, str) else head
    options: dict[str, Any] = {"head": HeadConfig(kind=kind, num_outputs=num_outputs)}  # type: ignore[arg-type]
    if kind == "higher":
        steps = {"deconvs": (DeconvConfig(width),), "tags": (num_outputs, 0)}
        options["head"] = dataclasses.replace(options["head"], **steps)
    if kind in ("v1", "v1h", "higher"):
        options["multiscale_output"] = False
    if kind in ("v2", "ocr", "face", "v1h"):
        options.update(upsample="bilinear", upsample_to="target")
    if kind == "ocr":
        options["align_corners"] = True
        options["head"] = dataclasses.replace(options["head"], dropout=0.05)
    if kind == "face":
        options["norm"] = NormConfig(momentum=0.01)
    if kind in (*CLASSIFICATION_HEADS, "features", "v2p"):
        options["init"] = "kaiming"
    return options
