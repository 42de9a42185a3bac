"""Batch normalisation layers of fused modules: read at every call, so that what was replaced or frozen counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hrnet_fast.norm_affine import Norm, math_dtype, norms_of_maps
from hrnet_fast.ops.primitives import BnActPrimitives, joint_affine, values_per_channel
from hrnet_fast.reference.norm import FrozenBatchNorm2d

# Values per channel behind some statistics: joint ones are counted on the device.
ValueCount = float | Tensor


class NormCall(NamedTuple):
    """One layer as it stands at a call.

    Attributes:
        norm: its parameters and buffers.
        batch: whether it normalises by the batch's statistics.
        counter: ``num_batches_tracked`` where this call counts.
        group: the processes whose batches are one, or None.
    """

    norm: Norm
    batch: bool
    counter: Tensor | None
    group: dist.ProcessGroup | None


def read_norm(module: nn.Module) -> NormCall:
    """Describe a supported layer as ``torch.nn.BatchNorm2d.forward`` would treat it now."""
    if not isinstance(module, _BatchNorm):
        assert isinstance(module, FrozenBatchNorm2d)
        own = (module.weight, module.bias, module.running_mean, module.running_var)
        return NormCall(Norm(module.num_features, *own, 0.0, module.eps), False, None, None)
    means, variances = module.running_mean, module.running_var
    batch = module.training or means is None
    tracks = module.training and module.track_running_stats and means is not None
    counter = module.num_batches_tracked if tracks else None
    momentum = module.momentum
    if momentum is None:  # cumulative average; this batch is not counted yet
        momentum = 1.0 / (float(counter) + 1.0) if counter is not None else 0.0
    if batch and not tracks:
        means = variances = None
    norm = Norm(module.num_features, module.weight, module.bias, means, variances, momentum, module.eps)
    return NormCall(norm, batch, counter, _joined_processes(module) if batch else None)


def _joined_processes(module: nn.Module) -> dist.ProcessGroup | None:
    if not (isinstance(module, nn.SyncBatchNorm) and module.training and dist.is_available() and dist.is_initialized()):
        return None
    group = module.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def count_batches(calls: Sequence[NormCall]) -> None:
    """Add one to every layer's ``num_batches_tracked``, in one call."""
    counters = [c.counter for c in calls if c.counter is not None]
    if len({id(c) for c in counters}) < len(counters):  # one layer in two places: a joint call would race
        for counter in counters:
            counter.add_(1)
    elif counters:
        torch._foreach_add_(counters, 1)


def normalise(
    primitives: BnActPrimitives, ys: Sequence[Tensor], calls: Sequence[NormCall]
) -> list[tuple[Tensor, ValueCount]]:
    """Return [4, C] (mean, invstd, scale, shift) of every map, and the number of values per channel behind it.

    All layers take the same statistics: :func:`same_statistics`. The count is of all processes (then a tensor), and
    infinite for given statistics. Running statistics move.

    Args:
        ys: maps [N, C_k, H, W].
        calls: layers in order along the channels of all maps.
    """
    norms = [c.norm for c in calls]
    if calls[0].batch and calls[0].group is None:
        counts = [values_per_channel(y) for y in ys]
        if 1 in counts:  # what torch.nn.functional.batch_norm raises where a batch has no variance
            size = ys[counts.index(1)].shape
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
        return [(a, float(n)) for a, n in zip(primitives.batch_affine(ys, norms), counts, strict=True)]
    shares = zip(ys, norms_of_maps(ys, norms), strict=True)
    if calls[0].batch:
        return [joint_affine(primitives, y, own, calls[0].group) for y, own in shares]
    return [(primitives.running_affine(own, math_dtype(y.dtype)), float("inf")) for y, own in shares]


def same_statistics(calls: Sequence[NormCall]) -> bool:
    """Whether all layers take the batch's, or all the running statistics, and of the same processes."""
    return all(c.batch == calls[0].batch and c.group is calls[0].group for c in calls)
