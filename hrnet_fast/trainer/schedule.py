"""``Schedule``: the learning rate's factor at each iteration, as a pure function."""

from __future__ import annotations

import bisect
import math

from hrnet_fast.checks import check_integer
from hrnet_fast.recipes.optimizer_sections import ScheduleRecipe


class Schedule:
    """The factor on the learning rates of all parameter groups.

    Args:
        recipe: the schedule.
        iterations_per_epoch: updates of an epoch.
        epochs: of the whole run.

    Raises:
        InputError: a number is no integer of at least 1.
    """

    def __init__(self, recipe: ScheduleRecipe, iterations_per_epoch: int, epochs: int) -> None:
        check_integer("Schedule", "iterations_per_epoch", iterations_per_epoch)
        check_integer("Schedule", "epochs", epochs)
        self.recipe, self.iterations_per_epoch = recipe, iterations_per_epoch
        self.iterations = iterations_per_epoch * epochs

    def factor(self, iteration: int) -> float:
        """Return the factor of an update, counted from 0 at the run's beginning.

        Raises:
            InputError: `iteration` is no integer of at least 0.
        """
        check_integer("Schedule.factor", "iteration", iteration, least=0)
        return self._warmup(iteration) * self._decay(iteration)

    def _warmup(self, iteration: int) -> float:
        recipe = self.recipe
        if iteration >= recipe.warmup_iterations:
            return 1.0
        if recipe.warmup_kind == "constant":
            return recipe.warmup_factor
        return recipe.warmup_factor + (1 - recipe.warmup_factor) * iteration / recipe.warmup_iterations

    def _decay(self, iteration: int) -> float:
        recipe = self.recipe
        if recipe.kind == "constant":
            return 1.0
        if recipe.kind == "step":
            epoch = iteration // self.iterations_per_epoch + recipe.before_epoch
            return float(recipe.factor ** bisect.bisect_right(recipe.milestones, epoch))
        passed = min(1.0, max(0, iteration - recipe.delay) / self.iterations)
        share = (1 - passed) ** recipe.power if recipe.kind == "poly" else (1 + math.cos(math.pi * passed)) / 2
        return recipe.least + (1 - recipe.least) * share
