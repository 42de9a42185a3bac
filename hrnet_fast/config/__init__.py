"""The one description of a network: everything that decides its layers and its numbers.

All networks of the paper and of the upstream code bases are values of :class:`HRNetConfig`; the ablations of
section 7 are fields, not forks. The classes are frozen dataclasses, checked when made, and go to and from plain
dictionaries.
"""

from hrnet_fast.config.fields import EXPANSION, HEAD_ALIASES, READ_BY, BlockKind, UpsampleMode, UpsampleTo
from hrnet_fast.config.head import HeadConfig
from hrnet_fast.config.network import HRNetConfig
from hrnet_fast.config.parts import DeconvConfig, NormConfig, StageConfig

__all__ = [
    "EXPANSION",
    "HEAD_ALIASES",
    "READ_BY",
    "BlockKind",
    "DeconvConfig",
    "HRNetConfig",
    "HeadConfig",
    "NormConfig",
    "StageConfig",
    "UpsampleMode",
    "UpsampleTo",
]
