"""The model registry: ``create_model``, ``list_models`` and ``get_config``, as in timm."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

from hrnet_fast.config import HRNetConfig
from hrnet_fast.errors import ConfigError, shown
from hrnet_fast.keypoints.methods import NO_HEATMAPS
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.models.variants import VARIANTS, Variant


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all variants that match a shell pattern such as ``"*pose*"``, sorted.

    Raises:
        ConfigError: `pattern` is no string.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"list_models: {shown(pattern)} given; accepted is a shell pattern such as '*pose*'.")
    return sorted(fnmatch.filter(VARIANTS, pattern))


def get_variant(name: str) -> Variant:
    """Return the entry of a named network.

    Raises:
        ConfigError: the name is unknown; the message suggests similar names.
    """
    if not isinstance(name, str):
        raise ConfigError(f"A model's name is a string; {shown(name)} given. list_models() names all.")
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.4)
        raise ConfigError(f"No model is called {name!r}. Near: {', '.join(near) or 'none'}; list_models() names all.")
    return VARIANTS[name]


def get_config(name: str, **overrides: Any) -> HRNetConfig:
    """Return a named variant's configuration, with fields changed (see :meth:`HRNetConfig.override`).

    Raises:
        ConfigError: a name or field is unknown.
    """
    return get_variant(name).make().override(**overrides)


def create_model(name: str, *, impl: str = "auto", **overrides: Any) -> HRNet:
    """Return a named variant with random weights, in training mode.

    Args:
        name: one of :func:`list_models`.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        overrides: fields of :class:`HRNetConfig`, its head or its norm, such as ``num_outputs=133``.

    Raises:
        ConfigError: a name or field is unknown.
        ImplementationError: the named implementation cannot run here.
    """
    model = HRNet(get_config(name, **overrides), impl=impl)
    task = get_variant(name).task
    model.keypoints = model.keypoints or {"pose": "msra", "segmentation": NO_HEATMAPS}.get(task)
    return model
