"""Batch normalisation layers as lean units use them: read at every call, so that what was replaced or frozen counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hrnet_fast.ops.bn_act_primitives import BnActPrimitives
from hrnet_fast.ops.bn_act_sync import joint_affine, joint_sums, values_per_channel
from hrnet_fast.reference.bn_act import Norm, math_dtype
from hrnet_fast.reference.norm import FrozenBatchNorm2d

# Values per channel behind some statistics: joint ones are counted on the device.
Count = float | Tensor

_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, FrozenBatchNorm2d.forward)


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


def unsupported_reason(module: nn.Module) -> str | None:
    """Say why a lean unit cannot take `module` for its normalisation, or None."""
    if type(module).forward not in _FORWARDS:
        return f"{type(module).__name__} is no plain batch normalisation"
    return None


def read(module: nn.Module) -> NormCall:
    """Describe a layer that has no :func:`unsupported_reason`, following ``torch.nn.BatchNorm2d.forward``."""
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
    return NormCall(norm, batch, counter, _group(module) if batch else None)


def _group(module: nn.Module) -> dist.ProcessGroup | None:
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


def check_count(y: Tensor, calls: Sequence[NormCall]) -> None:
    """Raise what ``torch.nn.functional.batch_norm`` raises where a batch has no variance."""
    if values_per_channel(y) == 1 and any(c.batch and c.group is None for c in calls):
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.shape}")


def normalise(pieces: BnActPrimitives, ys: Sequence[Tensor], calls: Sequence[NormCall]) -> list[tuple[Tensor, Count]]:
    """Return [4, C] (mean, invstd, scale, shift) of every map, and how many values per channel it stands for.

    All layers are of one kind: :func:`alike`. The count is of all processes (then a tensor), and infinite for given
    statistics. Running statistics move.

    Args:
        ys: maps [N, C_k, H, W].
        calls: layers in order along the channels of all maps.
    """
    if not calls[0].batch:
        shares = zip(ys, _shares(ys, calls), strict=True)
        return [(pieces.running_affine(own, math_dtype(y.dtype)), float("inf")) for y, own in shares]
    if calls[0].group is not None:
        shares = zip(ys, _shares(ys, calls), strict=True)
        return [joint_affine(pieces, y, own, calls[0].group) for y, own in shares]
    for y in ys:
        check_count(y, calls)
    affines = pieces.batch_affine(ys, [c.norm for c in calls])
    return [(a, float(values_per_channel(y))) for a, y in zip(affines, ys, strict=True)]


def alike(calls: Sequence[NormCall]) -> bool:
    """Whether all layers take the same statistics from the same processes."""
    return all(c.batch == calls[0].batch and c.group is calls[0].group for c in calls)


def _shares(ys: Sequence[Tensor], calls: Sequence[NormCall]) -> list[list[Norm]]:
    if len(calls) == 1:
        return [[calls[0].norm]]
    left = [c.norm for c in calls]
    shares: list[list[Norm]] = []
    for y in ys:
        shares.append([])
        while sum(n.channels for n in shares[-1]) < y.shape[1]:
            shares[-1].append(left.pop(0))
    return shares


def input_gradient(
    pieces: BnActPrimitives,
    grad: Tensor,
    y: Tensor,
    affine: Tensor,
    sums: Tensor,
    count: Count,
    call: NormCall,
    relu: bool,
) -> Tensor:
    """Return ``backward_input`` with the sums of all processes where they share their statistics.

    The given sums stay this process's: they are the parameters' gradients.
    """
    if isinstance(count, Tensor):
        return pieces.backward_input(
            grad, y, affine, joint_sums(sums, y, count, call.group), float(values_per_channel(y)), relu
        )
    return pieces.backward_input(grad, y, affine, sums, count, relu)
