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

__all__ = [
    "DataRecipe",
    "EvaluationRecipe",
    "LoopRecipe",
    "ModelRecipe",
    "OptimizerRecipe",
    "Recipe",
    "ScheduleRecipe",
    "get_recipe",
    "list_recipes",
    "recipe_description",
]
