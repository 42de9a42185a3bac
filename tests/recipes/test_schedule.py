"""Factors of the learning rate against torch's schedulers and mmengine's definitions."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from hrnet_fast import InputError
from hrnet_fast.recipes import ScheduleRecipe
from hrnet_fast.trainer.schedule import Schedule

PER_EPOCH, EPOCHS = 3, 8
TOTAL = PER_EPOCH * EPOCHS


def factors(**fields: object) -> list[float]:
    schedule = Schedule(ScheduleRecipe(**fields), PER_EPOCH, EPOCHS)  # type: ignore[arg-type]
    return [schedule.factor(i) for i in range(TOTAL)]


def rates(make: object, each: int) -> list[float]:
    """Return the rates of torch's scheduler, which steps behind every `each` iterations."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = make(optimizer), []  # type: ignore[operator]
    for i in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (i + 1) % each == 0:
            scheduler.step()
    return found


def test_steps_are_at_their_epochs() -> None:
    expected = rates(lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.1), PER_EPOCH)
    assert factors(kind="step", milestones=(2, 5)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_steps_before_the_epoch_are_one_epoch_early() -> None:
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        scheduler = lr_scheduler.MultiStepLR(optimizer, [2, 5], 0.1)
        scheduler.step()  # the authors' loops, with PyTorch from 1.1 on
        return scheduler

    expected = rates(make, PER_EPOCH)
    assert factors(kind="step", milestones=(2, 5), before_epoch=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [0.9, 1.0])
def test_poly_and_its_delay(power: float) -> None:
    expected = rates(lambda o: lr_scheduler.PolynomialLR(o, TOTAL, power), 1)
    assert factors(kind="poly", power=power) == pytest.approx(expected, rel=1e-9)
    assert factors(kind="poly", power=power, delay=1) == pytest.approx([1.0, *expected[:-1]], rel=1e-9)


def test_cosine_and_its_least_factor() -> None:
    expected = rates(lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, 0.05), 1)
    assert factors(kind="cosine", least=0.05) == pytest.approx(expected, rel=1e-9)


def test_the_warm_up_multiplies() -> None:
    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LinearLR(optimizer, 0.001, 1.0, total_iters=7)

    warm = rates(make, 1)
    assert factors(kind="constant", warmup_iterations=7) == pytest.approx(warm, rel=1e-9)
    both = [a * b for a, b in zip(warm, factors(kind="step", milestones=(1,)), strict=True)]
    assert factors(kind="step", milestones=(1,), warmup_iterations=7) == pytest.approx(both, rel=1e-12)


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="iterations_per_epoch=0 must be an integer of at least 1"):
        Schedule(ScheduleRecipe(), 0, 3)
    with pytest.raises(InputError, match="iteration=-1"):
        Schedule(ScheduleRecipe(), 1, 3).factor(-1)
