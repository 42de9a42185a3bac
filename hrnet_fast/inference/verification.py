"""The verification of a plan against the model's own forward on a small input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hrnet_fast.errors import HRNetFastError, InputError
from hrnet_fast.inference.execution.evaluator import evaluate
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.planning.tracer import InputShape, has_several, input_shapes
from hrnet_fast.inference.weight_source import ModelSource
from hrnet_fast.training.equivalence_check import onednn_disabled

_TRIAL = (64, 96)  # height and width: divisible by 32, and quick
_TOLERANCE = 1e-3  # relative; plans differ from models by rounding, 1e-6


def verify_plan(model: nn.Module, shape: InputShape, dtype: torch.dtype) -> None:
    """Compare a plan with the model's own forward, in the model's dtype on a small input, or on several of `shape`.

    Raises:
        InputError: the model's own forward fails.
        HRNetFastError: the results differ.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), onednn_disabled(), torch.autocast(device.type, enabled=False):
        for trial in [shape] if has_several(shape) else dict.fromkeys([(1, shape[1], *_TRIAL), (1, *shape[1:])]):
            random = torch.Generator().manual_seed(0)
            xs = tuple(torch.randn(s, generator=random).to(device, dtype) for s in input_shapes(trial))
            x = xs if has_several(shape) else xs[0]
            try:
                wanted = model(tree_map(torch.clone, x))
            except Exception as failure:  # the model may not take this size; the example's own is next
                if trial[2:] == shape[2:]:
                    message = f"{type(model).__name__} takes no input {list(trial)}: {str(failure)[:300]}"
                    raise InputError(f"optimize_for_inference: {message}") from failure
                continue
            given = evaluate(make_plan(model, trial, dtype), ModelSource(model).tensors(), x)
            break
    for a, b in zip(tree_leaves(given), tree_leaves(wanted), strict=True):
        if not isinstance(b, Tensor):
            continue
        finite = b.isfinite() if b.is_floating_point() else torch.zeros_like(b, dtype=torch.bool)
        # Integers, such as the index of a maximum, may change with a rounding: only their shape is compared.
        same = a.shape == b.shape and (torch.equal(a.isfinite(), finite) or not b.is_floating_point())
        error = (a[finite].double() - b[finite].double()).norm().item() if same else float("inf")
        scale = b[finite].double().norm().item()
        limit = _TOLERANCE if dtype in (torch.float32, torch.float64) else 0.1
        if error > limit * scale:
            raise HRNetFastError(
                f"optimize_for_inference: the plan of {type(model).__name__} differs from its own forward by "
                f"{error / (scale or 1.0):.1e}; it is not used. Please report this model."
            )
