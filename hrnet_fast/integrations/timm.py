"""timm: registers its HRNets, accelerated, under names of ours: ``hrnet_fast_w18`` for ``hrnet_w18``.

After ``import hrnet_fast.integrations.timm``, ``timm.create_model`` and what is built on it can name them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from hrnet_fast.integrations.common import missing_package, take_options
from hrnet_fast.training.accelerate import accelerate

try:
    from timm.models import hrnet as upstream
    from timm.models import list_models, register_model
except ModuleNotFoundError as error:
    raise missing_package(__name__, "timm", error) from error

# The weights and preprocessing of each network; timm's register_model reads this name.
default_cfgs: dict[str, Any] = {}


def _entrypoint(theirs: str, name: str) -> Callable[..., nn.Module]:
    create = getattr(upstream, theirs)

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        options = take_options(arguments)
        return accelerate(create(pretrained=pretrained, **arguments), **options)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Return timm's ``{theirs}``, accelerated.

    Args:
        pretrained: load timm's weights of that network.
        arguments: those of timm's models, and keyword arguments of :func:`hrnet_fast.accelerate`.
    """
    return build


def _register() -> None:
    for theirs in list_models(module="hrnet"):
        name = theirs.replace("hrnet_", "hrnet_fast_", 1)
        known = upstream.default_cfgs[theirs]
        # Of a hub's name "timm/", timm makes one of the network's own name: here it has to be theirs.
        weights = {
            tag: replace(cfg, hf_hub_id=f"timm/{theirs}.{tag}") if cfg.hf_hub_id == "timm/" else cfg
            for tag, cfg in known.cfgs.items()
        }
        default_cfgs[name] = replace(known, cfgs=weights)
        globals()[name] = register_model(_entrypoint(theirs, name))


_register()
