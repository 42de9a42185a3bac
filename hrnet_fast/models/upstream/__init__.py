"""Read the upstream code bases' own configurations into an :class:`HRNetConfig`.

Two dialects: the authors' yaml (:mod:`authors`; upper case, ``MODEL.EXTRA.STAGE2.NUM_MODULES``) and OpenMMLab's
mappings (:mod:`openmmlab`; lower case, ``backbone.extra.stage2.num_modules``), which the authors' detection repository
shares. Every key of a network's section is read, known to have no effect on the network, or an error
(:mod:`section`); a key that is absent means what the code that it is absent for makes of that.
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
        ConfigError: nothing there that describes an HRNet, a setting this package has no counterpart for, or a key it
            does not know.
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
                f"from_config: upstream={upstream!r} is for mappings of OpenMMLab; this one is the authors' (MODEL)."
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
