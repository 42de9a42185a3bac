"""Stages, normalisation and transposed convolutions of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from hrnet_fast.config.fields import (
    EXPANSION,
    BlockKind,
    NormKind,
    as_tuple,
    check_bools,
    check_one_of,
    check_positive,
    is_int,
    is_real,
)
from hrnet_fast.errors import ConfigError, shown


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
            object.__setattr__(self, name, as_tuple("StageConfig", name, getattr(self, name)))
        check_one_of("StageConfig", "block", self.block, get_args(BlockKind))
        check_positive("StageConfig", num_modules=self.num_modules)
        if not self.channels or len(self.channels) != len(self.num_blocks):
            raise ConfigError(
                f"StageConfig: channels={self.channels} and num_blocks={self.num_blocks} must name the same, "
                "non-empty set of branches: give one entry per branch in each."
            )
        for i, (c, b) in enumerate(zip(self.channels, self.num_blocks, strict=True)):
            check_positive("StageConfig", **{f"channels[{i}]": c, f"num_blocks[{i}]": b})

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
        check_one_of("NormConfig", "kind", self.kind, get_args(NormKind))
        check_positive("NormConfig", groups=self.groups)
        if self.momentum is not None and not (is_real(self.momentum) and 0.0 <= self.momentum <= 1.0):
            raise ConfigError(
                f"NormConfig: momentum={shown(self.momentum)} must lie in [0, 1] or be None (cumulative)."
            )
        if not (is_real(self.eps) and self.eps > 0.0):
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
        check_positive("DeconvConfig", channels=self.channels)
        check_one_of("DeconvConfig", "kernel_size", self.kernel_size, (2, 3, 4))
        check_bools("DeconvConfig", concat=self.concat)
        if not is_int(self.num_blocks) or self.num_blocks < 0:
            raise ConfigError(f"DeconvConfig: num_blocks={shown(self.num_blocks)} must be an integer of at least 0.")


def build_part(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A configuration of a mapping of its fields."""
    try:
        return kind(**fields)
    except TypeError:
        accepted = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ConfigError(f"{kind.__name__}: {shown(dict(fields))} given; its fields are {accepted}.") from None


def as_norm(value: Any) -> NormConfig | None:
    """A normalisation, given as such, by its kind or as :meth:`HRNetConfig.to_dict` has it."""
    if isinstance(value, str):
        return NormConfig(kind=value)  # type: ignore[arg-type]
    made: NormConfig | None = build_part(NormConfig, value) if isinstance(value, Mapping) else value
    return made
