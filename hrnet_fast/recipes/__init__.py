"""Recipes: how a network is trained and evaluated, as checked dataclasses and YAML."""

from hrnet_fast.recipes.lookup import get_recipe, list_recipes, recipe_description
from hrnet_fast.recipes.recipe import (
    DataRecipe,
    EvaluationRecipe,
    LoopRecipe,
    ModelRecipe,
    OptimizerRecipe,
    Recipe,
    ScheduleRecipe,
)
from hrnet_fast.recipes.upstream import from_authors_config, from_openmmlab_config

__all__ = [
    "DataRecipe",
    "EvaluationRecipe",
    "LoopRecipe",
    "ModelRecipe",
    "OptimizerRecipe",
    "Recipe",
    "ScheduleRecipe",
    "from_authors_config",
    "from_openmmlab_config",
    "get_recipe",
    "list_recipes",
    "recipe_description",
]
