"""The order of samples: the same for every number of processes, equally many steps in each."""

from __future__ import annotations

from typing import Any

import pytest
from made_task import recipe

import hrnet_fast as hf
from hrnet_fast.trainer.sampler import TrainingOrder


def order(samples: int, processes: int = 1, rank: int = 0, **loop: Any) -> TrainingOrder:
    return TrainingOrder(samples, recipe(**loop).loop, processes, rank)


@pytest.mark.parametrize("keep_last_batch", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_share_the_micro_batches_of_one(accumulate: int, keep_last_batch: bool) -> None:
    options: dict[str, Any] = {"batch_size": 12, "accumulate": accumulate, "keep_last_batch": keep_last_batch}
    one = order(32, **options)
    whole = list(one.micro_batches(0))
    for processes in (2, 3):
        ranks = [order(32, processes, rank, **options) for rank in range(processes)]
        parts = [list(each.micro_batches(0)) for each in ranks]
        assert {len(part) for part in parts} == {ranks[0].iterations * accumulate}
        for k, shares in enumerate(zip(*parts, strict=True)):
            assert len({len(share) for share in shares}) == 1
            assert len(shares[0]) == ranks[0].share(k // accumulate)
            together = [key for share in shares for key in share]
            if len(together) == len(whole[k]):
                assert together == whole[k]
            else:  # a last batch that cannot be divided equally loses a few
                epoch = k // accumulate // one.iterations_per_epoch
                assert {key.sample for key in together} < {*one.epoch_order(epoch)}
    assert len(whole) == 3 * (3 if keep_last_batch else 2) * accumulate


def test_an_epoch_has_each_sample_once_and_each_epoch_another_order() -> None:
    made = order(10, batch_size=4)
    assert (made.iterations_per_epoch, made.last_share, made.left_out) == (3, 2, 0)
    batches = list(made.micro_batches(0))
    epochs = [[key for batch in batches[k : k + 3] for key in batch] for k in (0, 3, 6)]
    assert all(sorted(key.sample for key in epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({key.seed for epoch in epochs for key in epoch}) == 30
    assert list(made.micro_batches(4)) == batches[4:]
    assert list(order(10, batch_size=4, seed=1).micro_batches(0)) != batches


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 6, "processes": 4}, "multiples of 4"),
        ({"batch_size": 8, "accumulate": 4, "processes": 3}, "accumulate=4"),
        ({"batch_size": 16, "keep_last_batch": False}, "less than one batch"),
    ],
)
def test_batches_that_cannot_be_had_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(hf.ConfigError, match=named):
        order(10, **options)
