"""``bn_act`` over the batches of several processes: what ``nn.SyncBatchNorm`` computes, from the same primitives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from hrnet_fast.errors import InputError
from hrnet_fast.norm_affine import Norm, affine, math_dtype, update_running
from hrnet_fast.ops.bn_act_primitives import BnActPrimitives, bn_act_primitives


def synchronised(
    x: Tensor, norm: Norm, residual: Tensor | None, relu: bool, group: distributed.ProcessGroup | None, impl: str
) -> Tensor:
    """Return act(batch_norm(x) + residual) with the statistics of all processes; every one of them must call it.

    Batches may differ in size, and be empty.

    Raises:
        InputError: one value per channel over all processes.
    """
    with torch.no_grad():
        table, total = joint_affine(bn_act_primitives(impl, x), x, [norm], group)
    apply: Callable[..., Tensor] = _Synchronised.apply
    return apply(x, norm.weight, norm.bias, residual, table, total, relu, group, impl)


def joint_affine(
    primitives: BnActPrimitives, x: Tensor, norms: Sequence[Norm], group: distributed.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """[4, C] of the joint batch, and its number of values per channel as a tensor; moves the running statistics."""
    channels, count = x.shape[1], x.shape[0] * x.shape[2] * x.shape[3]
    own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if count:
        own[:-1] = primitives.statistics(x).flatten()
        own[-1] = count
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(gathered, own, group)
    table = torch.stack(gathered)
    counts, means, variances = table[:, -1:], table[:, :channels], table[:, channels:-1]
    total = counts.sum()
    # Reading the sum waits for the device; a process with two or more values need not.
    if count <= 1 and total.item() <= 1:
        if total.item() == 1:
            raise InputError("Expected more than 1 value per channel when training, got 1 over all processes.")
        return torch.zeros(4, channels, dtype=math_dtype(x.dtype), device=x.device), total
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    # The count stays on the device: nothing waits for it.
    update_running(norms, mean, variance, total)
    return affine(mean, variance, norms, math_dtype(x.dtype)), total


def joint_sums(sums: Tensor, x: Tensor, total: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """The sums of all processes, scaled so that dividing by this process's values per channel gives the joint mean.

    ``backward_input`` divides by a number that the host knows, and the joint number is on the device.
    """
    joint = sums.clone()
    distributed.all_reduce(joint, group=group)
    return joint * (values_per_channel(x) / total).to(joint.dtype)


def values_per_channel(x: Tensor) -> int:
    """Return N * H * W of [N, C, H, W], at least 1."""
    return max(1, x.shape[0] * x.shape[2] * x.shape[3])


class _Synchronised(torch.autograd.Function):
    """An autograd function and no custom operator: its backward communicates with other processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        affine: Tensor,
        total: Tensor,
        relu: bool,
        group: distributed.ProcessGroup | None,
        impl: str,
    ) -> Tensor:
        out: Tensor = bn_act_primitives(impl, x).bn_act(x, affine, residual, relu)
        ctx.relu, ctx.group, ctx.impl = relu, group, impl
        ctx.kept = residual is not None and relu
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
        ctx.save_for_backward(x, affine, total, *([out] if ctx.kept else []))
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, affine, total, *kept = ctx.saved_tensors
        want_x, want_weight, want_bias, want_residual = ctx.needs_input_grad[:4]
        primitives = bn_act_primitives(ctx.impl, x)
        keep = ctx.kept and (want_x or want_residual)
        sums, masked = primitives.backward_sums(grad, None, x, affine, kept[0] if kept else None, ctx.relu, keep)
        grad_x = None
        if want_x:
            joint = joint_sums(sums, x, total, ctx.group)
            count = float(values_per_channel(x))
            grad_x = primitives.backward_input(
                grad if masked is None else masked, x, affine, joint, count, ctx.relu and not keep
            )
        return (
            grad_x,
            sums[1].to(ctx.dtypes[0]) if want_weight else None,
            sums[0].to(ctx.dtypes[1]) if want_bias else None,
            (masked if ctx.kept else grad) if want_residual else None,
            None, None, None, None, None,
        )  # fmt: skip
