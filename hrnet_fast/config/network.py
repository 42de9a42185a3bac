"""``HRNetConfig``: the configuration of a whole network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hrnet_fast.config.fields import (
    CLASSIFICATION_HEADS,
    EXPANSION,
    HEAD_ALIASES,
    READ_BY,
    BlockKind,
    UpsampleMode,
    UpsampleTo,
    as_tuple,
    check_fields,
    check_one_of,
    check_positive,
    is_int,
)
from hrnet_fast.config.head import HeadConfig
from hrnet_fast.config.parts import DeconvConfig, NormConfig, StageConfig
from hrnet_fast.errors import ConfigError, shown


@dataclass(frozen=True)
class HRNetConfig:
    """The configuration of a network: stem, stages, fusion, normalisation and head.

    Attributes:
        stages: four stages in the paper's networks; the first is the single-branch ``layer1``. The number of
            branches must not decrease. Four branches in every later stage are section 7's "resolution maintenance".
        in_channels: channels of the input image.
        stem_channels: width of the two stride-2 3x3 convolutions of the stem.
        upsample: interpolation inside the fusion.
        align_corners: mode of every bilinear interpolation in this network.
        upsample_to: the upsampled size in the fusion. ``"scale"``: times 2^k, as the families with nearest
            interpolation (sizes that differ raise :class:`~hrnet_fast.errors.InputError`); ``"target"``: the target's
            own size; ``"scale_then_target"``: the first, then a second interpolation if sizes differ (mmsegmentation).
        fusion: combine the fused terms by ``"sum"`` or ``"product"`` (section 7).
        fusion_units: ``"final"``, ``"across"`` or ``"within"``: Table 12's (a), (b) and (c).
        downsample: ``"strided"`` 3x3 convolutions, or ``"bilinear"`` reduction and a 1x1 convolution (section 7).
        multiscale_output: whether the last fusion outputs all resolutions or only the highest.
        norm: normalisation layers.
        norm_eval: keep the batch statistics of stem, stages and transitions frozen in training mode.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the stages up to k.
        zero_init_residual: initialise the last scale of each residual unit to 0.
        gradient_checkpointing: recompute residual units in backward.
        init: ``"normal"`` (std 0.001, the authors' dense heads) or ``"kaiming"`` (fan-out, classification, mm*).
        head: the layers after the last stage.
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
        object.__setattr__(self, "stages", as_tuple(owner, "stages", self.stages))
        parts = [("stages", StageConfig, one) for one in self.stages]
        for name, kind, part in (*parts, ("head", HeadConfig, self.head), ("norm", NormConfig, self.norm)):
            if not isinstance(part, kind):
                raise ConfigError(f"{owner}: {name} has {shown(part)} where a {kind.__name__} belongs.")
        check_fields(self, apart=("frozen_stages",))
        if len(self.stages) < 2:
            raise ConfigError(f"{owner}: {len(self.stages)} stage(s) given; a network needs at least two.")
        if self.stages[0].num_branches != 1 or self.stages[0].num_modules != 1:
            raise ConfigError(f"{owner}: the first stage is one module of one branch, not {self.stages[0]}.")
        branches = [stage.num_branches for stage in self.stages]
        if branches != sorted(branches):
            raise ConfigError(f"{owner}: branches per stage {branches} must not shrink.")
        if not is_int(self.frozen_stages) or not -1 <= self.frozen_stages <= len(self.stages):
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
        if not indices or any(not is_int(i) or not 0 <= i < maps for i in indices) or len(set(indices)) != len(indices):
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
        """Whether this network interpolates bilinearly anywhere, and so depends on ``align_corners``."""
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
        """Return the configuration of a network by its width C (section 3.4: branches of C, 2C, 4C and 8C channels).

        Defaults depend on the head. Pose (``v1``) interpolates nearest and ends in one resolution, as the authors' pose
        net. So does ``higher``, with one transposed convolution as wide as the first branch and a tag per keypoint at
        1/4. ``v2``, ``ocr`` and ``face`` interpolate bilinearly to the target's size. Classification and ``v2p``
        interpolate nearest.

        Args:
            width: C, the output channels of the highest-resolution branch; with ``block="bottleneck"`` its planes
                are ``width // 4`` (Table 15's lower half).
            head: a head kind or one of its aliases (``"pose"``, ``"segmentation"``, ``"detection"``, ...).
            num_outputs: keypoints, classes or landmarks.
            block: residual unit of the branches, ``"basic"`` or ``"bottleneck"``.
            num_blocks: residual units per branch and module.
            num_modules: modules of each stage after the first.
            num_branches: branches of each stage after the first.
            stage1_channels: planes of the first stage's bottlenecks.
            stage1_blocks: bottlenecks of the first stage.
            overrides: fields of :class:`HRNetConfig`, :class:`HeadConfig` or (``bn_momentum``) :class:`NormConfig`.

        Raises:
            ConfigError: a value is out of range, or a field is unknown.
        """
        check_positive("HRNetConfig.make", width=width, num_blocks=num_blocks, stage1_channels=stage1_channels)
        check_one_of("HRNetConfig.make", "block", block, get_args(BlockKind))
        planes = width // EXPANSION[block]
        check_positive("HRNetConfig.make", planes=planes)
        stages = [StageConfig((stage1_channels,), (stage1_blocks,), 1, "bottleneck")]
        num_modules = as_tuple("HRNetConfig.make", "num_modules", num_modules)  # type: ignore[assignment]
        num_branches = as_tuple("HRNetConfig.make", "num_branches", num_branches)  # type: ignore[assignment]
        if len(num_modules) != len(num_branches):
            raise ConfigError(
                f"HRNetConfig.make: num_modules={num_modules} and num_branches={num_branches} must have one entry "
                "per stage each."
            )
        for modules, branches in zip(num_modules, num_branches, strict=True):
            check_positive("HRNetConfig.make", num_branches=branches)
            channels = tuple(planes * 2**i for i in range(branches))
            stages.append(StageConfig(channels, (num_blocks,) * branches, modules, block))
        config = cls(tuple(stages), **_head_defaults(head, num_outputs, width))
        return config.override(**overrides)

    def override(self, **changes: Any) -> HRNetConfig:
        """Return a copy with fields of this class, of its head or its norm changed (``norm`` fields as ``norm_kind``,
        ``norm_eps``, ``norm_groups`` and ``bn_momentum``).

        Raises:
            ConfigError: a name is unknown, or no network can have this combination.
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
            if isinstance(whole, str):  # a kind, whose other fields may be given too
                part, whole = {"kind": whole, **part}, getattr(self, name)
            # The constructor refuses other types.
            own[name] = dataclasses.replace(whole, **part) if isinstance(whole, kind) else whole
        return dataclasses.replace(self, **own)

    def to_dict(self) -> dict[str, Any]:
        """Return dictionaries, lists and scalars for JSON and :meth:`from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HRNetConfig:
        """Rebuild a configuration from :meth:`to_dict`.

        Raises:
            ConfigError: a field or value is unknown.
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
    """Return the fields of HRNetConfig that depend on the head, as in the authors' repository for its task."""
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


def check_effect(before: HRNetConfig, after: HRNetConfig) -> None:
    """Raise ConfigError for overrides of fields that the network's head does not use."""
    fields = [field.name for field in dataclasses.fields(HeadConfig)]
    idle = [name for name in fields if getattr(before.head, name) != getattr(after.head, name)]
    idle = [name for name in idle if after.head.kind not in READ_BY.get(name, (after.head.kind,))]
    if before.align_corners != after.align_corners and not after.bilinear:
        idle.append("align_corners")
    if idle:
        raise ConfigError(
            f"{', '.join(idle)}: given, but without effect on this network, a {after.head.kind!r} head on "
            f"{after.upsample} upsampling. Leave that out."
        )
