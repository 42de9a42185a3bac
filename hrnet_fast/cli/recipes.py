"""The commands ``recipe list`` and ``recipe show``."""

from __future__ import annotations

from pathlib import Path

import click

from hrnet_fast.cli.console import json_option, print_json, print_table
from hrnet_fast.cli.recipe_options import find_recipe, recipe_options


@click.group()
def recipe() -> None:
    """List and print recipes: how a network is trained and evaluated."""


@recipe.command("list")
@click.argument("pattern", default="*")
@json_option
def list_command(pattern: str, as_json: bool) -> None:
    """List the recipes that match PATTERN (a shell pattern such as 'paper/*')."""
    from hrnet_fast.recipes import list_recipes, recipe_description

    found = [(name, recipe_description(name)) for name in list_recipes(pattern)]
    if not found:
        raise click.UsageError(f"no recipe matches {pattern!r}; `hrnet-fast recipe list` lists all.")
    if as_json:
        print_json([{"name": name, "description": description} for name, description in found])
    else:
        print_table(("recipe", "description"), found)


@recipe.command("show")
@click.argument("name", required=False)
@recipe_options
@json_option
def show_command(
    name: str | None, authors_yaml: Path | None, openmmlab: Path | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Print a recipe with every field, as YAML that can be edited and given to `train`."""
    found = find_recipe(name, authors_yaml, openmmlab, settings)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(found.to_yaml(), nl=False)
