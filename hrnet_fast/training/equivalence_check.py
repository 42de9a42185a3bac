"""The comparison of a block with its fused form, before it is accelerated.

Attribute names say what a block looks like, not what its forward does with them. So a copy with random weights runs
once plainly and once fused with the reference's operators, which checks the structure. A fusion whose layers do not say
how it upsamples is compared with every mode of interpolation.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.flags import ProcessFlag
from hrnet_fast.implementations import request
from hrnet_fast.reference.blocks import BasicBlock, Bottleneck
from hrnet_fast.reference.hrnet import HRNetReference
from hrnet_fast.reference.modularized_block import HighResolutionModule
from hrnet_fast.training.fused_fusion import FusedModularizedBlock
from hrnet_fast.training.fused_modules import FusedModule, Settings, fused_class
from hrnet_fast.training.fusion_layers import RESAMPLINGS, find_terms, resampling_of

_TOLERANCE = 1e-4  # of float32 sums in two orders; another structure differs by far more


def signature(module: nn.Module) -> tuple[Any, ...]:
    """Return what decides how a block computes: classes and plain attributes. Equal ones are compared once."""
    scalars = (bool, int, float, str, type(None))
    own = tuple(sorted((k, v) for k, v in vars(module).items() if isinstance(v, scalars) and k != "training"))
    state = tuple((name, t is None) for name, t in [*module._parameters.items(), *module._buffers.items()])
    inner = tuple((name, type(m)) for name, m in module.named_modules())
    leaves = [m for m in module.modules() if not (m._parameters or m._buffers or m._modules)]
    constants = tuple(
        repr(sorted((k, v) for k, v in vars(m).items() if isinstance(v, (*scalars, tuple)) and k != "training"))
        for m in leaves
    )
    return type(module), own, state, inner, constants


def known_settings(module: nn.Module, settings: Settings) -> Settings | str | None:
    """Return the settings of this package's own modules, or why they are not fused; None for another's."""
    if type(module) in (BasicBlock, Bottleneck) or isinstance(module, HRNetReference):
        return settings
    if type(module) is not HighResolutionModule:
        return None
    if module.product or not (module.strided or module.num_outputs == 1):
        return "it multiplies, or reduces by interpolation (an ablation of the paper's section 7)"
    exact = module.upsample_to != "target"
    return replace(settings, mode=module.upsample, align_corners=module.align_corners, exact_scale=exact)


def check_equivalence(module: nn.Module, kind: type[FusedModule], settings: Settings) -> Settings | str:
    """Return the settings with which `kind` computes what `module` does, or say why there are none."""
    branches = getattr(module, "branches", None) if kind is FusedModularizedBlock else None
    try:
        if branches is not None:  # they are blocks of their own
            module._modules["branches"] = nn.ModuleList(nn.Identity() for _ in branches)
        trial = _trial(module)
    except Exception as error:  # whatever a foreign module's deepcopy raises
        return f"it cannot be copied to be compared ({str(error)[:120]})"
    finally:
        if branches is not None:
            module._modules["branches"] = branches
    if branches is not None:
        return _check_fusion(trial, [_out_channels(b) for b in branches], settings)
    x = _noise(trial, _in_channels(trial), (9, 7))
    agrees = _agrees(trial, kind, settings, x.clone)
    return settings if agrees is True else str(agrees)


def _check_fusion(trial: nn.Module, channels: list[int], settings: Settings) -> Settings | str:
    terms = find_terms(trial.fuse_layers)
    if isinstance(terms, str):
        return terms
    declared = resampling_of(terms)
    reason = ""
    # Odd sizes check interpolation to a target of any size. Upsampling by a factor takes multiples only: it is checked
    # where layers declare it, or where odd sizes fail.
    for height, width, exact in ((17, 13, False), (16, 32, True))[bool(declared) :]:
        sizes = [(-(-height // (1 << k)), -(-width // (1 << k))) for k in range(len(channels))]
        xs = [_noise(trial, c, size) for c, size in zip(channels, sizes, strict=True)]
        for mode, align in declared or RESAMPLINGS:
            found = replace(settings, mode=mode, align_corners=align, exact_scale=exact)
            agrees = _agrees(trial, FusedModularizedBlock, found, lambda xs=xs: [x.clone() for x in xs])  # type: ignore[misc]
            if agrees is True:
                return found
            reason = str(agrees)
    return reason


def _agrees(trial: nn.Module, kind: type[FusedModule], settings: Settings, inputs: Callable[[], Any]) -> bool | str:
    """Return True, or how the two forwards differ, in evaluation or (what drops parts at random) in training."""
    for training in (False, True):
        trial.train(training)
        agrees = _agrees_now(trial, kind, settings, inputs)
        if agrees is not True:
            return f"{agrees}{' in training' if training else ''}"
    return True


def _agrees_now(trial: nn.Module, kind: type[FusedModule], settings: Settings, inputs: Callable[[], Any]) -> bool | str:
    base, device = type(trial), next(trial.parameters()).device
    neutral = (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        onednn_disabled(),
        # A block that draws random numbers leaves the caller's generators as they were.
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    )
    with contextlib.ExitStack() as stack:
        for context in neutral:
            stack.enter_context(context)
        try:
            wanted = trial(inputs())
        except Exception as error:
            return f"its forward cannot be tried ({str(error)[:120]})"
        trial.__class__ = fused_class(kind, base)
        vars(trial).update(fused_settings=replace(settings, implementation=request("reference")), last_call_reason=None)
        try:
            given = trial(inputs())
            reason = trial.last_call_reason
        except Exception as error:  # its structure is another than its names say
            return f"its fused form does not run ({str(error)[:120]})"
        finally:
            trial.__class__ = base
            del vars(trial)["fused_settings"], vars(trial)["last_call_reason"]
    if reason is not None:
        return str(reason)
    lists = [[t] if isinstance(t, Tensor) else list(t) for t in (given, wanted)]
    same = len(lists[0]) == len(lists[1]) and all(_is_close(a, b) for a, b in zip(*lists, strict=True))
    return same or f"the forward of {base.__name__} computes something else than its structure says"


_mkldnn: Any = torch.backends.mkldnn  # type: ignore[attr-defined]
_onednn = ProcessFlag(lambda: _mkldnn.enabled, lambda value: setattr(_mkldnn, "enabled", value))


def onednn_disabled() -> contextlib.AbstractContextManager[None]:
    """Disable oneDNN, which compiles a kernel for every new shape: seconds in all, for shapes that are used once."""
    return _onednn.held(False)


def _is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool((a - b).norm() <= _TOLERANCE * b.norm())


def _trial(module: nn.Module) -> nn.Module:
    """Return a copy in float32 and evaluation mode, with random weights and statistics of which none is 0 or 1."""
    trial = copy.deepcopy(module)
    if any(p.is_meta for p in trial.parameters()):
        trial = trial.to_empty(device="cpu")
    trial = trial.float().eval().requires_grad_(False)
    for part in trial.modules():
        if type(part) is nn.SyncBatchNorm:  # other processes take no part in the comparison
            part.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    random = torch.Generator().manual_seed(0)
    for name, t in [*trial.named_parameters(), *trial.named_buffers()]:
        if not t.is_floating_point():
            continue
        values = torch.rand(t.shape, generator=random, device="cpu")
        if t.dim() > 1:
            values = (values - 0.5) * math.sqrt(12.0 / max(1, t[0].numel()))
        elif name.endswith("running_mean"):
            values -= 0.5
        else:
            values += 0.5
        t.copy_(values)
    return trial


def _in_channels(module: nn.Module) -> int:
    return next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))


def _out_channels(branch: nn.Module) -> int:
    """Return the channels of a branch's output: those of its last convolution."""
    return [m.out_channels for m in branch.modules() if isinstance(m, nn.Conv2d)][-1]


def _noise(module: nn.Module, channels: int, size: tuple[int, int]) -> Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, channels, *size, generator=random, device="cpu")
    return x.to(next(module.parameters()).device)
