"""``StageConfig``, ``NormConfig`` and ``DeconvConfig``: configurations of the parts of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrnet_fast.config.fields import (
    EXPANSION,
    BlockKind,
    NormKind,
    as_tuple,
    check_fields,
    check_one_of,
    check_positive,
    is_real,
)
from hrnet_fast.errors import ConfigError, shown


@dataclass(frozen=True)
class StageConfig:
    """A stage: `num_modules` modularized blocks of parallel branches (paper, section 3.4 and Table 14).

    Attributes:
        channels: planes of each branch's residual units, highest resolution first. A bottleneck has four times
            as many output channels.
        num_blocks: residual units per branch and module.
        num_modules: modularized blocks in the stage.
        block: residual unit, ``"basic"`` (two 3x3 convolutions) or ``"bottleneck"``.
    """

    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    num_modules: int = 1
    block: BlockKind = "basic"

    def __post_init__(self) -> None:
        for name in ("channels", "num_blocks"):
            object.__setattr__(self, name, as_tuple("StageConfig", name, getattr(self, name)))
        check_fields(self)
        if not self.channels or len(self.channels) != len(self.num_blocks):
            raise ConfigError(
                f"StageConfig: channels={self.channels} and num_blocks={self.num_blocks} must have one entry "
                "per branch each, and at least one."
            )
        for i, (c, b) in enumerate(zip(self.channels, self.num_blocks, strict=True)):
            check_positive("StageConfig", **{f"channels[{i}]": c, f"num_blocks[{i}]": b})

    @property
    def num_branches(self) -> int:
        return len(self.channels)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Output channels of each branch."""
        return tuple(c * EXPANSION[self.block] for c in self.channels)


@dataclass(frozen=True)
class NormConfig:
    """The normalisation after every convolution.

    Attributes:
        kind: ``"bn"``, ``"syncbn"`` (statistics over all processes), ``"gn"`` (group normalisation) or ``"frozen"``
            (batch normalisation whose scale, shift and statistics are buffers).
        momentum: momentum of the running statistics of batch normalisation; ``None`` for the cumulative average.
        eps: added to the variance.
        groups: groups of ``"gn"``, a divisor of every normalised number of channels.
    """

    kind: NormKind = "bn"
    momentum: float | None = 0.1
    eps: float = 1e-5
    groups: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        if self.momentum is not None and not (is_real(self.momentum) and 0.0 <= self.momentum <= 1.0):
            raise ConfigError(
                f"NormConfig: momentum={shown(self.momentum)} must lie in [0, 1] or be None (cumulative)."
            )
        if not (is_real(self.eps) and self.eps > 0.0):
            raise ConfigError(f"NormConfig: eps={shown(self.eps)} must be positive.")


@dataclass(frozen=True)
class DeconvConfig:
    """A step of the ``"higher"`` head: a transposed convolution, residual units and outputs at twice the resolution.

    Attributes:
        channels: output channels of the transposed convolution and of the residual units.
        kernel_size: kernel size of the transposed convolution of stride 2 (2, 3 or 4).
        num_blocks: basic residual units after it.
        concat: whether its input is the previous features concatenated with their outputs.
    """

    channels: int
    kernel_size: int = 4
    num_blocks: int = 4
    concat: bool = True

    def __post_init__(self) -> None:
        check_one_of("DeconvConfig", "kernel_size", self.kernel_size, (2, 3, 4))
        check_fields(self, from_zero=("num_blocks",), apart=("kernel_size",))


def build_part(kind: Any, fields: Mapping[str, Any]) -> Any:
    """Return a configuration from a mapping of its fields; raise ConfigError for unknown ones."""
    try:
        return kind(**fields)
    except TypeError:
        accepted = ", ".join(field.name for field in dataclasses.fields(kind))
        raise ConfigError(f"{kind.__name__}: {shown(dict(fields))} given; its fields are {accepted}.") from None


def as_norm(value: Any) -> NormConfig | None:
    """Return a NormConfig given as such, by its kind, or as a mapping of :meth:`HRNetConfig.to_dict`."""
    if isinstance(value, str):
        return NormConfig(kind=value)  # type: ignore[arg-type]
    made: NormConfig | None = build_part(NormConfig, value) if isinstance(value, Mapping) else value
    return made
