"""The operator ``bn_act``: act(batch_norm(x) + residual), forward and backward, in as few passes as possible.

Training takes two steps, since torch accepts no gradient formula for an operator that writes to its arguments: one
reduces the batch to an affine per channel and moves the running statistics, the other applies it and differentiates
through both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hrnet_fast.checks import check_bool, check_number, check_tensor, check_text
from hrnet_fast.errors import InputError, shown
from hrnet_fast.norm_affine import Norm, math_dtype
from hrnet_fast.ops.bn_act_primitives import bn_act_primitives
from hrnet_fast.ops.common import check_dtype, dense_format
from hrnet_fast.ops.compiled import compiled_operator


def bn_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    activation: str | None = "relu",
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    num_batches_tracked: Tensor | None = None,
    sync: bool = False,
    process_group: torch.distributed.ProcessGroup | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return act(batch_norm(x) + residual), as ``nn.BatchNorm2d``, an addition and ReLU compute it.

    Args:
        x: [N, C, H, W] of a floating dtype; channels-last or contiguous.
        weight, bias: affine parameters [C]; None for 1 and 0.
        running_mean, running_var: running statistics [C], both or neither. Training moves them in place, the variance
            towards the batch's unbiased one.
        residual: added before the activation; of x's shape, dtype and device.
        activation: ``"relu"`` or None.
        training: normalise with the statistics of the batch; otherwise with the running ones, as constants.
        momentum: weight of the batch in the running statistics; None averages all batches alike, which needs
            `num_batches_tracked` (and under ``torch.compile`` breaks the graph, as ``nn.BatchNorm2d`` does).
        eps: added to the variance.
        num_batches_tracked: counter of training batches, an integer tensor; training adds 1 in place.
        sync: in training, take the statistics of the batches of all processes together, as ``nn.SyncBatchNorm`` does:
            gradients of x are those of the joint batch, gradients of weight and bias the process's own. Without an
            initialised ``torch.distributed``, or with one process, there is nothing to join.
        process_group: the processes to join; None for all.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"`` (no float64).

    Returns:
        [N, C, H, W] in x's dtype and layout. Half types are computed in float32 and rounded once. Differentiable once
        in x, weight, bias and residual; backward keeps x, [4, C] of statistics, and the result where both a residual
        and an activation are given. An empty batch leaves the running statistics as they are.

    Raises:
        InputError: tensors that do not fit each other, or a training batch with one value per channel.
        ImplementationError: a named implementation that cannot run here.
    """
    check_tensor("bn_act", "x", x)
    named = (("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var))
    for name, tensor in (*named, ("residual", residual), ("num_batches_tracked", num_batches_tracked)):
        check_tensor("bn_act", name, tensor, optional=True)
    check_bool("bn_act", training=training, sync=sync)
    check_text("bn_act", impl=impl)
    check_number("bn_act", "eps", eps)
    if momentum is not None:
        check_number("bn_act", "momentum", momentum)
    _check_maps(x, residual, activation)
    _check_channels(x, weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
    if (running_mean is None) != (running_var is None):
        raise InputError("bn_act: one of running_mean and running_var alone is given; give both or neither.")
    if process_group is not None and not sync:
        raise InputError("bn_act: a process_group is given, but sync=False; take sync=True to join its processes.")
    relu, share = activation == "relu", 0.0
    if training:
        joined = sync and _processes(process_group) > 1
        if x.shape[0] * x.shape[2] * x.shape[3] == 1 and not joined:
            raise InputError(
                f"bn_act: expected more than 1 value per channel when training, got input size {tuple(x.shape)}; take "
                "training=False or a larger batch."
            )
        share = _momentum(momentum, num_batches_tracked, running_mean is not None)
        if joined:
            from hrnet_fast.ops.bn_act_sync import synchronised

            norm = Norm(x.shape[1], weight, bias, running_mean, running_var, share, eps)
            return synchronised(x, norm, residual, relu, process_group, impl)
    elif running_mean is None or running_var is None:
        raise InputError("bn_act: training=False normalises with running_mean and running_var; give both.")
    compiled = compiled_operator("bn_act", impl, x)
    if compiled is not None:
        tensors = [x, weight, bias, running_mean, running_var, residual]
        out = compiled(tensors, relu, training, share, eps)
        if out is not None:
            return out
    given = (x.detach(), _detached(weight), _detached(bias), running_mean, running_var)
    affine = _batch_affine(*given, share, eps, impl) if training else _running_affine(*given, eps, impl)  # type: ignore[arg-type]
    result: Tensor = _bn_act(x, weight, bias, affine, residual, relu, training, impl)
    return result


def _check_maps(x: Tensor, residual: Tensor | None, activation: str | None) -> None:
    if x.dim() != 4:
        raise InputError(f"bn_act: x has shape {tuple(x.shape)}; give [N, C, H, W].")
    check_dtype("bn_act", x)
    if activation is not None and activation != "relu":
        raise InputError(f"bn_act: activation {shown(activation)}; accepted are 'relu' and None.")
    if residual is None:
        return
    if residual.shape != x.shape:
        raise InputError(f"bn_act: residual has shape {tuple(residual.shape)}; it must be x's {tuple(x.shape)}.")
    if residual.dtype != x.dtype or residual.device != x.device:
        raise InputError(
            f"bn_act: residual is {residual.dtype} on {residual.device}; it must be {x.dtype} on {x.device}, as x is."
        )


def _check_channels(x: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.shape != (x.shape[1],):
            raise InputError(f"bn_act: {name} has shape {tuple(tensor.shape)}; x has {x.shape[1]} channels.")
        if tensor.device != x.device or not tensor.is_floating_point():
            raise InputError(
                f"bn_act: {name} is {tensor.dtype} on {tensor.device}; it must be floating, on x's {x.device}."
            )


def _processes(group: torch.distributed.ProcessGroup | None) -> int:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


def _momentum(momentum: float | None, tracked: Tensor | None, needed: bool) -> float:
    """Count the batch and return its weight, as ``nn.BatchNorm2d`` does."""
    if momentum is None and tracked is None and needed:
        raise InputError("bn_act: momentum=None averages over all batches; give num_batches_tracked, their number.")
    if tracked is not None:
        with torch.no_grad():
            tracked.add_(1)
    if momentum is None:
        return 1.0 / float(tracked) if needed and tracked is not None else 0.0
    return float(momentum)


def _detached(tensor: Tensor | None) -> Tensor | None:
    """Detach: gradients of the parameters come from the second step."""
    return None if tensor is None else tensor.detach()


@torch.library.custom_op("hrnet_fast::bn_batch_affine", mutates_args=("running_mean", "running_var"))
def _batch_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor |
    None, momentum: float, eps: float, impl: str,
) -> Tensor:  # fmt: skip
    """Return [4, C] of the batch's statistics; move the running ones."""
    if x.numel() == 0:
        return torch.zeros(4, x.shape[1], dtype=math_dtype(x.dtype), device=x.device)
    norm = Norm(x.shape[1], weight, bias, running_mean, running_var, momentum, eps)
    affine: Tensor = bn_act_primitives(impl, x).batch_affine([x], [norm])[0]
    return affine


@_batch_affine.register_fake
def _batch_affine_fake(x, weight, bias, running_mean, running_var, momentum, eps, impl):  # type: ignore[no-untyped-def]
    return torch.empty(4, x.shape[1], dtype=math_dtype(x.dtype), device=x.device)


@torch.library.custom_op("hrnet_fast::bn_running_affine", mutates_args=())
def _running_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float,
    impl: str,
) -> Tensor:  # fmt: skip
    """Return [4, C] of given statistics; of x only dtype and device matter."""
    norm = Norm(x.shape[1], weight, bias, running_mean, running_var, 0.0, eps)
    affine: Tensor = bn_act_primitives(impl, x).running_affine([norm], math_dtype(x.dtype))
    return affine


@_running_affine.register_fake
def _running_affine_fake(x, weight, bias, running_mean, running_var, eps, impl):  # type: ignore[no-untyped-def]
    return torch.empty(4, x.shape[1], dtype=math_dtype(x.dtype), device=x.device)


@torch.library.custom_op("hrnet_fast::bn_act", mutates_args=())
def _bn_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, affine: Tensor, residual: Tensor | None, relu: bool,
    batch: bool, impl: str,
) -> Tensor:  # fmt: skip
    """Return act(affine(x) + residual). `affine` includes weight and bias: as arguments they receive gradients.

    `batch` says that `affine` holds x's own statistics, through which its gradient then goes as well.
    """
    out: Tensor = bn_act_primitives(impl, x).bn_act(x, affine, residual, relu)
    # In the layout that the fake promises.
    return out.contiguous(memory_format=dense_format(x))


@_bn_act.register_fake
def _bn_act_fake(x, weight, bias, affine, residual, relu, batch, impl):  # type: ignore[no-untyped-def]
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=dense_format(x))


@torch.library.custom_op("hrnet_fast::bn_act_backward", mutates_args=())
def _bn_act_backward(
    grad: Tensor, x: Tensor, affine: Tensor, out: Tensor | None, relu: bool, batch: bool, want_x: bool,
    want_affine: bool, want_masked: bool, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, of bias and weight [2, C], and the masked gradient; an unwanted one is empty.

    `out` is the activation behind a residual: x and `affine` alone do not give its sign.
    """
    primitives = bn_act_primitives(impl, x)
    masked, grad_x = grad.new_empty(0), grad.new_empty(0)
    sums = affine.new_empty(0)
    keep = out is not None and (want_x or want_masked)
    if want_affine or keep or (want_x and batch):
        sums, kept = primitives.backward_sums(grad, None, x, affine, out, relu, keep)
        masked = masked if kept is None else kept
    if want_x:
        count = x.numel() // max(1, x.shape[1]) if batch else float("inf")
        grad_x = primitives.backward_input(masked if keep else grad, x, affine, sums, count, relu and not keep)
        grad_x = grad_x.contiguous(memory_format=dense_format(x))
    masked = masked.contiguous(memory_format=dense_format(x)) if want_masked else grad.new_empty(0)
    return grad_x, sums if want_affine else affine.new_empty(0), masked


@_bn_act_backward.register_fake
def _bn_act_backward_fake(grad, x, affine, out, relu, batch, want_x, want_affine, want_masked, impl):  # type: ignore[no-untyped-def]
    full = {"dtype": x.dtype, "device": x.device, "memory_format": dense_format(x)}
    grad_x = torch.empty(x.shape, **full) if want_x else grad.new_empty(0)
    masked = torch.empty(x.shape, **full) if want_masked else grad.new_empty(0)
    return grad_x, affine.new_empty(2, x.shape[1]) if want_affine else affine.new_empty(0), masked


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, affine, residual, ctx.relu, ctx.batch, ctx.impl = inputs
    # Without a residual, the activation's sign follows from x and the affine.
    ctx.kept = residual is not None and ctx.relu
    ctx.wanted = [t is not None and t.requires_grad for t in (x, weight, bias, residual)]
    ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
    ctx.save_for_backward(x, affine, *([output] if ctx.kept else []))


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, affine, *kept = ctx.saved_tensors
    want_x, want_weight, want_bias, want_residual = ctx.wanted
    grad_x, sums, masked = torch.ops.hrnet_fast.bn_act_backward(
        grad, x, affine, kept[0] if kept else None, ctx.relu, ctx.batch, want_x, want_weight or want_bias,
        want_residual and ctx.kept, ctx.impl,
    )  # fmt: skip
    return (
        grad_x if want_x else None,
        sums[1].to(ctx.dtypes[0]) if want_weight else None,
        sums[0].to(ctx.dtypes[1]) if want_bias else None,
        None,
        (masked if ctx.kept else grad) if want_residual else None,
        None,
        None,
        None,
    )


_bn_act.register_autograd(_backward, setup_context=_setup_context)
