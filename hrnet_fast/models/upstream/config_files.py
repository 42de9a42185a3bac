"""Reading of configurations (yaml and Python files, mmengine and yacs objects, mappings) as plain dictionaries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrnet_fast.errors import ConfigError

Source = str | os.PathLike[str] | Mapping[str, Any] | Any


def read_source(cfg: Source) -> dict[str, Any]:
    """Return the configuration as dictionaries, lists and values.

    Args:
        cfg: a ``.yaml`` path, a ``.py`` path (read by mmengine), an mmengine ``Config``, a yacs ``CfgNode`` or any
            mapping.

    Raises:
        ConfigError: a file cannot be read, a ``.py`` file is given without mmengine, or `cfg` has another type.
    """
    if isinstance(cfg, (str, os.PathLike)):
        path = Path(cfg)
        cfg = _read_python(path) if path.suffix == ".py" else _read_yaml(path)
    elif not isinstance(cfg, Mapping) and hasattr(cfg, "_cfg_dict"):  # mmengine's Config, without importing mmengine
        cfg = _mmengine_dict(cfg)
    if not isinstance(cfg, Mapping):
        raise ConfigError(
            f"from_config: {type(cfg).__name__} given; accepted are the path of a .yaml or .py file, an mmengine "
            "Config, or a mapping."
        )
    return {str(key): _to_builtin(value) for key, value in cfg.items()}


def _mmengine_dict(config: Any) -> Any:
    """Return the dictionary of an mmengine ``Config``; ``to_dict`` replaces classes in newer Python files by names."""
    convert = getattr(config, "to_dict", None)
    return convert() if callable(convert) else config._cfg_dict


def _to_builtin(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _to_builtin(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_to_builtin, value)) if type(value) in (list, tuple) else [_to_builtin(v) for v in value]
    return value


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"from_config: {path} cannot be read as yaml: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"from_config: {path} holds no mapping.")
    return data


def _read_python(path: Path) -> Any:
    """Read a Python file by mmengine, which runs the file and its bases; this package runs no configuration code."""
    try:
        from mmengine.config import Config  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigError(
            f"from_config: {path} is a Python file, which needs the package mmengine, and that cannot be imported "
            f"({error}). Install it (pip install mmengine), or give the configuration as a mapping."
        ) from error
    try:
        return _mmengine_dict(Config.fromfile(path, import_custom_modules=False))
    except Exception as error:  # whatever the file's own code raises
        raise ConfigError(f"from_config: {path} cannot be read by mmengine: {type(error).__name__}: {error}") from error
