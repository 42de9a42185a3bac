"""Conversion of the upstream code bases' configurations to an :class:`HRNetConfig`.

There are two formats: the authors' yaml (:mod:`authors_config`; upper case, ``MODEL.EXTRA.STAGE2.NUM_MODULES``) and
OpenMMLab's mappings (:mod:`openmmlab_config`; lower case, ``backbone.extra.stage2.num_modules``), which the authors'
detection repository shares. Each key of a network's section is read, is known to have no effect on the network, or
raises an error (:mod:`section`). An absent key takes the default of its upstream.
"""

from __future__ import annotations

import dataclasses

from hrnet_fast.config import HeadConfig, HRNetConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.authors_config import read_authors_config
from hrnet_fast.models.upstream.config_files import Source, read_source
from hrnet_fast.models.upstream.description import PARTS, UPSTREAMS, Description
from hrnet_fast.models.upstream.openmmlab_config import read_openmmlab_config
from hrnet_fast.models.upstream.section import Section

__all__ = ["PARTS", "UPSTREAMS", "Description", "Source", "read_configuration"]


def read_configuration(cfg: Source, *, upstream: str | None = None, part: str = "all") -> Description:
    """Return the network that an upstream's configuration describes (arguments as in :meth:`HRNet.from_config`).

    Raises:
        ConfigError: the configuration describes no HRNet, has a setting without a counterpart in this package, or an
            unknown key.
    """
    if upstream is not None and upstream not in UPSTREAMS:
        raise ConfigError(f"from_config: upstream={upstream!r} is not one of {', '.join(map(repr, UPSTREAMS))}.")
    if part not in PARTS:
        raise ConfigError(f"from_config: part={part!r} is not one of {', '.join(map(repr, PARTS))}.")
    data = read_source(cfg)
    try:
        found = _read_mapping(data, upstream, part)
    except ConfigError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ConfigError(f"from_config: the configuration lacks or mistypes {error}.") from error
    if part == "backbone":
        found = dataclasses.replace(found, config=_trunk(found.config), keypoints=None)
    return found


def _read_mapping(data: dict[str, object], upstream: str | None, part: str) -> Description:
    if "MODEL" in data:
        if upstream is not None:
            raise ConfigError(
                f"from_config: upstream={upstream!r} applies to OpenMMLab mappings; this one is the authors' (MODEL)."
            )
        return read_authors_config(Section(data), part)
    if {"model", "backbone", "extra", "stage2"} & set(data):
        return read_openmmlab_config(Section(data), upstream, part)
    raise ConfigError(
        f"from_config: no HRNet found under the keys {', '.join(list(data)[:8])}; accepted are the authors' "
        "MODEL.EXTRA and OpenMMLab's backbone or extra."
    )


def _trunk(config: HRNetConfig) -> HRNetConfig:
    return dataclasses.replace(config, head=HeadConfig("features"))
