"""``Description``, the result of reading a configuration, and the reader of its stages, common to both formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hrnet_fast.config import BlockKind, HRNetConfig, StageConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.section import Section

UPSTREAMS = ("mmpose", "mmseg", "mmdet")
PARTS = ("all", "backbone")
STAGE1 = StageConfig((64,), (4,), 1, "bottleneck")
_BLOCKS: dict[str, BlockKind] = {"BASIC": "basic", "BOTTLENECK": "bottleneck"}


@dataclass(frozen=True)
class Description:
    """The network that a configuration describes.

    Attributes:
        config: the network.
        notes: messages on settings that were assumed or left out.
        keypoints: method to decode its heatmaps, a name in :data:`hrnet_fast.keypoints.METHODS`; None without
            top-down heatmaps.
    """

    config: HRNetConfig
    notes: tuple[str, ...] = ()
    keypoints: str | None = None


def read_stages(extra: Section, *, first: bool = True) -> tuple[StageConfig, ...]:
    """Return the stages under ``STAGE1`` or ``stage1``, ``STAGE2``, ...

    Args:
        extra: the section with the stages.
        first: whether the upstream reads the first stage; otherwise it is the constant of the pose repositories.
    """
    upper = any(str(key).startswith("STAGE") for key in extra.values)
    stages = [STAGE1]
    for k in range(1, 10):
        key = f"stage{k}".upper() if upper else f"stage{k}"
        if key not in extra or extra.values[key] is None:
            extra.no_effect(key)
            if k == 1:
                continue
            break
        if k == 1 and not first:
            extra.no_effect(key)
        elif k == 1:
            stages = [_read_stage(extra.section(key), upper)]
        else:
            stages.append(_read_stage(extra.section(key), upper))
    return tuple(stages)


def _read_stage(section: Section, upper: bool) -> StageConfig:
    def key(name: str) -> str:
        return name.upper() if upper else name

    given = section.get(key("block"))
    block = _BLOCKS.get(str(given).upper())
    if block is None:
        raise ConfigError(f"from_config: {section.name(key('block'))} is {given!r}; accepted are BASIC, BOTTLENECK.")
    method = section.get(key("fuse_method"), "SUM")
    if str(method).upper() != "SUM":
        raise ConfigError(
            f"from_config: {section.name(key('fuse_method'))} is {method!r}; the upstreams' code has SUM only."
        )
    stage = StageConfig(
        tuple(section.get(key("num_channels"))),
        tuple(section.get(key("num_blocks"))),
        section.get(key("num_modules")),
        block,
    )
    for name in (key("num_branches"), "NUM_RANCHES"):  # a spelling in the authors' first stages, which no code reads
        if section.get(name, stage.num_branches) != stage.num_branches:
            raise ConfigError(
                f"from_config: {section.name(name)} is {section.values[name]!r}, but num_channels and num_blocks name "
                f"{stage.num_branches}; give one entry per branch in each."
            )
    section.no_effect("multiscale_output")  # of the last stage; read where the backbone is
    section.close()
    return stage


def check_int(value: object, name: str) -> int:
    """Return an integer of a configuration, such as a number of classes.

    Raises:
        ConfigError: `value` is no integer.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"from_config: the configuration mistypes {name}: {value!r} given; an integer belongs there.")
    return value


def check_flag(value: object, name: str) -> bool:
    """Return a boolean of a configuration.

    Raises:
        ConfigError: `value` is no boolean; strings such as ``'False'``, numbers and null are none.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"from_config: the configuration mistypes {name}: {value!r} given; a boolean belongs there.")
    return value


def names(values: Mapping[str, object]) -> str:
    return ", ".join(map(str, values))
