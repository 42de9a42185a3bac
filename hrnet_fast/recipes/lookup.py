"""``get_recipe`` and ``list_recipes``: recipes by name from the catalogue, and from files."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrnet_fast.errors import ConfigError, HRNetFastError, shown
from hrnet_fast.recipes.recipe import Recipe

CATALOGUE = Path(__file__).parent / "catalogue"
# Sections whose fields depend on one of them: a recipe's own replaces its base's as a whole.
_REPLACED = ("model", "data", "loss")


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names of the catalogue's recipes that match a shell pattern such as ``"paper/*"``, sorted.

    Raises:
        ConfigError: `pattern` is no string.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"list_recipes: {shown(pattern)} given; accepted is a shell pattern such as 'paper/*'.")
    names = (path.relative_to(CATALOGUE).with_suffix("").as_posix() for path in CATALOGUE.rglob("*.yaml"))
    return sorted(fnmatch.filter(names, pattern))


def get_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Return a recipe by its name in the catalogue, or of a YAML file.

    A file with ``base: NAME`` changes the recipe of that name or file (relative to it). Sections are merged field by
    field; ``model``, ``data`` and ``loss`` are replaced.

    Args:
        name: such as ``"paper/pose_w32_coco"``, or a path that ends with ``.yaml`` or ``.yml``.

    Raises:
        ConfigError: there is no such recipe, or it is not valid; the message suggests near names.
    """
    path = _find(name, Path())
    try:
        return Recipe.from_dict(_read(path, ()))
    except HRNetFastError as error:
        raise ConfigError(f"{os.fspath(name)}: {error}") from error


def recipe_description(name: str) -> str:
    """Return the description of a recipe of the catalogue, without checking the others of its fields."""
    description = _read(_find(name, Path()), ()).get("description", "")
    assert isinstance(description, str)
    return description


def _find(name: str | os.PathLike[str], folder: Path) -> Path:
    if not isinstance(name, (str, os.PathLike)) or not isinstance(os.fspath(name), str):
        raise ConfigError(f"get_recipe: {shown(name)} given; accepted is a recipe's name or the path of a .yaml file.")
    text = os.fspath(name)
    if text.endswith((".yaml", ".yml")):
        if not (folder / text).is_file():
            raise ConfigError(f"get_recipe: there is no file {folder / text}. list_recipes() names the catalogue's.")
        return folder / text
    known = list_recipes()
    if text not in known:
        near = difflib.get_close_matches(text, known, n=3, cutoff=0.4)
        raise ConfigError(
            f"No recipe is called {text!r}. Near: {', '.join(near) or 'none'}; list_recipes() names all, and a file's "
            "path ends with .yaml."
        )
    return CATALOGUE / f"{text}.yaml"


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} holds {shown(data)}; accepted is a recipe, a mapping.")
    if "MODEL" in data:
        raise ConfigError(f"{path} is the authors' configuration; from_authors_config (--authors-yaml) reads it.")
    data = dict(data)
    base = data.pop("base", None)
    if base is None:
        return data
    below = _find(base, path.parent)
    if below in (*seen, path):
        raise ConfigError(f"{path}: base {base!r} leads back to itself.")
    return _merged(_read(below, (*seen, path)), data)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        together = isinstance(value, Mapping) and isinstance(below, Mapping) and not (depth == 0 and key in _REPLACED)
        merged[key] = _merged(below, value, depth + 1) if together else value  # type: ignore[arg-type]
    return merged
