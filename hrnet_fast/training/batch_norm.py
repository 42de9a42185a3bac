"""Batch normalisation layers of fused modules: read at every call, so that what was replaced or frozen counts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

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


def read_batch_norm(module: nn.Module) -> NormCall:
    """Describe a supported layer as ``torch.nn.BatchNorm2d.forward`` would treat it now."""
    if not isinstance(module, _BatchNorm):
        frozen: Any = module
        own = (frozen.weight, frozen.bias, frozen.running_mean, frozen.running_var)
        return NormCall(Norm(channels_of(frozen), *own, 0.0, frozen.eps), False, None, None)
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


def channels_of(module: Any) -> int:
    """Return the channels of a batch normalisation; torchvision's frozen one has them as the size of its buffers."""
    return int(module.num_features if isinstance(module, _BatchNorm) else module.running_mean.numel())


_FROZEN_BUFFERS = ("weight", "bias", "running_mean", "running_var")
_frozen_forwards: dict[Callable[..., Any], bool] = {FrozenBatchNorm2d.forward: True}


def is_frozen(module: nn.Module) -> bool:
    """Whether `module` normalises by buffers alone, as the FrozenBatchNorm2d of several packages do.

    Decided by its buffers and by what its class's forward computes, which is tried once.
    """
    buffers = {name for name in module._buffers if name != "num_batches_tracked"}
    if buffers != set(_FROZEN_BUFFERS) or module._parameters or module._modules or "forward" in vars(module):
        return False
    if not isinstance(vars(module).get("eps"), float) or any(module._buffers[name] is None for name in buffers):
        return False
    forward = type(module).forward
    if forward not in _frozen_forwards:
        _frozen_forwards[forward] = _normalises_by_buffers(module)
    return _frozen_forwards[forward]


def _normalises_by_buffers(module: nn.Module) -> bool:
    trial: Any = copy.copy(module)
    random = torch.Generator().manual_seed(0)
    values = [torch.rand(3, generator=random, device="cpu") + 0.5 for _ in _FROZEN_BUFFERS]
    trial._buffers = {**module._buffers, **dict(zip(_FROZEN_BUFFERS, values, strict=True))}
    trial.eps = 0.25  # one that forward does not read would be found
    x = torch.rand(2, 3, 2, 2, generator=random, device="cpu")
    weight, bias, mean, variance = values
    wanted = nn.functional.batch_norm(x, mean, variance, weight, bias, eps=trial.eps)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            # Without the hooks, which the copy shares.
            given = [type(trial).forward(trial.train(mode), x) for mode in (True, False)]
            return all(torch.allclose(one, wanted, atol=1e-5) for one in given)
    except Exception:  # whatever a foreign forward raises
        return False


def promotes(module: nn.Module) -> bool:
    """Whether a normalisation multiplies by float32 buffers, and so returns float32 maps under autocast."""
    return not isinstance(module, (_BatchNorm, FrozenBatchNorm2d))


def _joined_processes(module: nn.Module) -> dist.ProcessGroup | None:
    if not (isinstance(module, nn.SyncBatchNorm) and module.training and dist.is_available() and dist.is_initialized()):
        return None
    group = module.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def synchronised(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the layers that may share their statistics with other processes."""
    return [module for module in modules if isinstance(module, nn.SyncBatchNorm)]


def share_statistics(modules: Sequence[nn.Module]) -> bool:
    """Whether one of these layers does so at a call now: in training with several processes."""
    if not modules or not dist.is_available() or not dist.is_initialized():
        return False
    return any(_joined_processes(module) is not None for module in modules)


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
