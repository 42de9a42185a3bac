"""Readers that OpenMMLab's heads and necks share: normalisation, registered names, channel counts."""

from __future__ import annotations

from typing import Any

from hrnet_fast.config import HeadConfig, NormConfig
from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.section import Section

_NORMS = {"BN": "bn", "SyncBN": "syncbn", "GN": "gn", "BN2d": "bn", "naiveSyncBN": "syncbn"}
NO_EFFECT = ("type", "init_cfg", "loss", "train_cfg", "test_cfg", "loss_keypoint", "_scope_")
Found = tuple[HeadConfig, tuple[str, ...]]


def read_norm(section: Section, default: Any = None) -> NormConfig | None:
    """Return the normalisation of ``norm_cfg``, or None if there is none and no default.

    Raises:
        ConfigError: the kind is unknown, ``requires_grad`` is False, or a key is unknown.
    """
    values = section.get("norm_cfg", default)
    if values is None:
        return None
    norm = Section(values, section.name("norm_cfg"))
    name = str(norm.get("type", "BN")).rpartition(".")[2]
    if name not in _NORMS:
        raise ConfigError(f"from_config: {norm.name('type')} is {name!r}; accepted are {', '.join(_NORMS)}.")
    norm.expect("requires_grad", True)
    kind = _NORMS[name]
    rest: dict[str, Any] = {"eps": norm.get("eps", 1e-5)}
    if kind == "gn":
        rest["groups"] = norm.get("num_groups", 32)
    else:
        rest["momentum"] = norm.get("momentum", 0.1)
    norm.close()
    return NormConfig(kind, **rest)  # type: ignore[arg-type]


def registered_name(section: Section, *accepted: str) -> str:
    """Return the registered name without its scope, by default the first of `accepted`."""
    given = section.get("type", accepted[0])
    name = given.__name__ if isinstance(given, type) else str(given).rpartition(".")[2]
    if name not in accepted:
        raise ConfigError(f"from_config: {section.name('type')} is {name!r}; accepted are {', '.join(accepted)}.")
    return name


def check_head_channels(section: Section, key: str, needed: Any) -> None:
    given = section.get(key, needed)
    given = tuple(given) if isinstance(given, (list, tuple)) else given
    if given not in (needed, sum(needed) if isinstance(needed, tuple) else needed):
        raise ConfigError(f"from_config: {section.name(key)} is {given!r}, but this backbone gives {needed!r}.")
