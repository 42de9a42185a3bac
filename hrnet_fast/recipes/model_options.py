"""The network that a recipe's model section describes, and the section that describes a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hrnet_fast.errors import ConfigError, shown
from hrnet_fast.recipes.sections import ModelRecipe
from hrnet_fast.recipes.values import as_plain, check_mapping, field_names

if TYPE_CHECKING:
    from hrnet_fast.config import HRNetConfig
    from hrnet_fast.detection import DetectorConfig

_HEATMAPS = ("v1", "v1h", "v2", "face")
HEADS_OF_TASK = {
    "pose": _HEATMAPS,
    "landmarks": _HEATMAPS,
    "segmentation": ("v1", "v1h", "v2", "ocr", "face"),
    "classification": ("c", "ci", "cii"),
    "detection": ("v2p",),
}
# Arguments of make_detector_config that are no options of a recipe, and what gives them.
_DECIDED = {
    "num_classes": "the data decides how many classes there are",
    "kind": "model.name names the kind of detector",
    "heads": "model.options.rpn, roi and fcos have their fields",
}


def network_config(recipe: ModelRecipe, num_outputs: int) -> HRNetConfig:
    """Return the configuration of a recipe's network with the data's outputs.

    Raises:
        ConfigError: an option does not exist or does not fit, or names another number of outputs than the data has.
    """
    from hrnet_fast.config import HRNetConfig
    from hrnet_fast.models.registry import get_config

    given = recipe.options.get("num_outputs", num_outputs)
    if given != num_outputs:
        raise ConfigError(f"model.options.num_outputs={given}, but the data has {num_outputs}; remove the option.")
    try:
        options = {key: _as_part(key, value) for key, value in recipe.options.items()} | {"num_outputs": num_outputs}
        config = get_config(recipe.name, **options) if recipe.name else HRNetConfig.make(**options)
    except TypeError as error:
        raise ConfigError(f"model.options: {error}") from error
    base = get_config(recipe.name) if recipe.name else HRNetConfig.make(head=config.head.kind, num_outputs=num_outputs)
    _check_used(base, config)
    return config


def _check_used(base: HRNetConfig, config: HRNetConfig) -> None:
    """Raise ConfigError for options that the network's head does not use."""
    from hrnet_fast.config import check_effect

    try:
        check_effect(base, config)
    except ConfigError as error:
        raise ConfigError(f"model.options.{error}") from None


def detector_config(recipe: ModelRecipe, num_classes: int) -> DetectorConfig:
    """Return the configuration of a recipe's detector for the data's classes.

    Raises:
        ConfigError: an option does not exist or does not fit.
    """
    from hrnet_fast.detection import make_detector_config
    from hrnet_fast.detection.defaults import default_heads

    parts = ("rpn", "roi", "fcos")
    for name, decided in _DECIDED.items():
        if name in recipe.options:
            raise ConfigError(f"model.options.{name}={shown(recipe.options[name])}: {decided}; remove the option.")
    shipped, heads = default_heads(recipe.name), {}
    try:
        options = {key: _as_part(key, value) for key, value in recipe.options.items() if key not in parts}
        for name in (name for name in parts if recipe.options.get(name) is not None):
            if name not in shipped:
                raise ConfigError(f"model.options.{name}: {recipe.name} has none; remove it.")
            heads[name] = _changed(shipped[name], recipe.options[name], f"model.options.{name}")
        config = make_detector_config(recipe.name, num_classes=num_classes, heads=heads, **options)
    except TypeError as error:
        raise ConfigError(f"model.options: {error}") from error
    _check_used(make_detector_config(recipe.name).network, config.network)
    return config


def _changed(part: Any, changes: Any, path: str) -> Any:
    """Return a part of a configuration with fields changed, in the parts within it as well."""
    if isinstance(part, tuple) and part and dataclasses.is_dataclass(part[0]):
        each = changes if isinstance(changes, list) else [changes] * len(part)
        if len(each) != len(part):
            raise ConfigError(f"{path}: {len(each)} given; accepted is one mapping, or {len(part)} in a list.")
        return tuple(
            _changed(one, change, f"{path}[{i}]") for i, (one, change) in enumerate(zip(part, each, strict=True))
        )
    if not dataclasses.is_dataclass(part) or changes is None:
        return _as_tuple(changes)
    given = check_mapping(type(part), changes, path)  # type: ignore[arg-type]
    fields = {name: _changed(getattr(part, name), value, f"{path}.{name}") for name, value in given.items()}
    return dataclasses.replace(part, **fields)  # type: ignore[type-var]


def _as_part(key: str, value: Any) -> Any:
    """Return YAML's lists as tuples, and mappings as parts of a configuration."""
    from hrnet_fast.config import NormConfig, StageConfig

    if key == "stages":
        if not isinstance(value, (list, tuple)) or not all(isinstance(stage, Mapping) for stage in value):
            raise ConfigError(f"model.options.stages={shown(value)}; accepted is a list of mappings, one a stage.")
        return tuple(StageConfig(**{k: _as_tuple(v) for k, v in stage.items()}) for stage in value)
    if key == "norm" and isinstance(value, Mapping):
        return NormConfig(**value)
    return _as_tuple(value)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def check_model(task: str, recipe: ModelRecipe) -> None:
    """Check a section without data.

    Raises:
        ConfigError: there is no such network, or its head is none of the task's.
    """
    if task == "detection":
        detector_config(recipe, 1)
        return
    kind = network_config(recipe, recipe.options.get("num_outputs", 1)).head.kind
    if kind not in HEADS_OF_TASK[task]:
        name = recipe.name or dict(recipe.options)
        raise ConfigError(
            f"model: {name} has the head {kind!r}; the task {task} trains {', '.join(HEADS_OF_TASK[task])}."
        )


def describe_network(config: HRNetConfig) -> ModelRecipe:
    """Return the section of a network, without outputs: a named one with the fewest options that differ.

    Raises:
        ConfigError: no network has this head.
    """
    from hrnet_fast.models.variants import VARIANTS

    wanted = _options(config)
    found = ModelRecipe("", {})
    fewest = None
    for name, variant in VARIANTS.items():
        own = variant.make()
        if own.head.kind != config.head.kind:
            continue
        have = _options(own)
        options = {key: value for key, value in wanted.items() if have[key] != value}
        rank = ("stages" in options, len(options), len(name))
        if fewest is None or rank < fewest:
            found, fewest = ModelRecipe(name, options), rank
    if fewest is None:
        raise ConfigError(f"No network of list_models() has the head {config.head.kind!r}, which no recipe trains.")
    return found


def describe_detector(config: DetectorConfig) -> ModelRecipe:
    """Return the section of a detector, with the options that differ from what mmdetection ships.

    Raises:
        ConfigError: it is none of mmdetection's kinds with other settings.
    """
    from hrnet_fast.detection import make_detector_config

    width = config.network.out_channels[0]
    base = make_detector_config(config.kind, width, config.num_classes)
    wanted, have = _options(config.network), _options(base.network)
    options: dict[str, Any] = {"width": width} | {k: v for k, v in wanted.items() if have[k] != v}
    for name in ("rpn", "roi", "fcos"):
        changes = _difference(getattr(config, name), getattr(base, name))
        if changes != {}:
            options[name] = changes
    return ModelRecipe(config.kind, options)


def _difference(part: Any, base: Any) -> Any:
    """Return what :func:`_changed` makes `part` of `base` with; an empty mapping where they are equal."""
    if part == base:
        return {}
    if isinstance(part, tuple) and part and dataclasses.is_dataclass(part[0]):
        return [_difference(one, other) for one, other in zip(part, base, strict=True)]
    if not dataclasses.is_dataclass(part) or base is None:
        return as_plain(dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part)  # type: ignore[arg-type]
    pairs = {name: (getattr(part, name), getattr(base, name)) for name in field_names(type(part))}  # type: ignore[arg-type]
    return {name: _difference(own, other) for name, (own, other) in pairs.items() if own != other}


def _options(config: HRNetConfig) -> dict[str, Any]:
    """Return a configuration as options of HRNetConfig.override, without its outputs."""
    data: dict[str, Any] = as_plain(config.to_dict())
    head, norm = data.pop("head"), data.pop("norm")
    for name in ("kind", "num_outputs"):
        head.pop(name)
    names = {"momentum": "bn_momentum", "kind": "norm_kind", "eps": "norm_eps", "groups": "norm_groups"}
    return {**data, **head} | {names[key]: value for key, value in norm.items()}
