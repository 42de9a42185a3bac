"""``HRNetConfig``: the configuration of a network, with all settings that determine its layers and results.

It describes all networks of the paper, with the ablations of section 7, and of the upstream code bases. The classes are
frozen dataclasses that check their fields and convert to and from plain dictionaries.
"""

from hrnet_fast.config.fields import EXPANSION, HEAD_ALIASES, READ_BY, BlockKind, UpsampleMode, UpsampleTo
from hrnet_fast.config.head import HeadConfig
from hrnet_fast.config.network import HRNetConfig, check_effect
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
    "check_effect",
]
