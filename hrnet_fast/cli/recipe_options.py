"""The recipe that a command's options describe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrnet_fast.errors import ConfigError, InputError

if TYPE_CHECKING:
    from hrnet_fast.recipes import Recipe

_OPTIONS = (
    click.option("--authors-yaml", type=click.Path(path_type=Path), help="Read an experiment of the authors' code."),
    click.option("--openmmlab", type=click.Path(path_type=Path), help="Read a file of mmpose, mmseg or mmdet."),
    click.option(
        "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe, such as "
        "loop.epochs=3; may be repeated.",
    ),
)  # fmt: skip


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that :func:`find_recipe` takes to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def find_recipe(
    name: str | None,
    authors_yaml: Path | None,
    openmmlab: Path | None,
    settings: tuple[str, ...],
    run: Path | None = None,
) -> Recipe:
    """Return the recipe of the catalogue or of a file, with its changes.

    Args:
        name: of the catalogue, or a path of a YAML file.
        authors_yaml, openmmlab: a configuration of another code base.
        settings: changes of fields.
        run: a run's folder, whose recipe is taken where nothing else is named.

    Raises:
        InputError: none or several are given.
        ConfigError: the recipe or a change is not valid.
    """
    from hrnet_fast import recipes
    from hrnet_fast.recipes import upstream

    given = [source for source in (name, authors_yaml, openmmlab) if source is not None]
    if len(given) > 1:
        raise InputError("RECIPE, --authors-yaml and --openmmlab exclude each other; give one of them.")
    if authors_yaml is not None:
        found = upstream.from_authors_config(authors_yaml)
    elif openmmlab is not None:
        found = upstream.from_openmmlab_config(openmmlab)
    elif name is not None:
        found = recipes.get_recipe(name)
    elif run is not None and (run / "recipe.yaml").is_file():
        found = recipes.get_recipe(run / "recipe.yaml")
    else:
        raise ConfigError(
            "no recipe given; give a name (`hrnet-fast recipe list` prints them), the path of a YAML file, "
            "--authors-yaml or --openmmlab."
        )
    return found.override(*settings) if settings else found
