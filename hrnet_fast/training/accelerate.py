"""The functions ``accelerate``, ``restore`` and ``explain``: fused execution of any code base's HRNet, in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from hrnet_fast.checks import check_module
from hrnet_fast.errors import InputError, shown
from hrnet_fast.implementations import request, resolve
from hrnet_fast.reference.hrnet import HRNetReference
from hrnet_fast.training import unsupported
from hrnet_fast.training.equivalence_check import check_equivalence, known_settings, signature
from hrnet_fast.training.fused_fusion import FusedModularizedBlock
from hrnet_fast.training.fused_modules import (
    ADDED,
    FusedModule,
    FusedSequence,
    FusedUnit,
    Refusal,
    Settings,
    fused_class,
)
from hrnet_fast.training.fused_network import FusedNetwork
from hrnet_fast.training.matching import flat, looks_like_unit

MEMORY = ("fast", "lean", "min")
CHECKPOINTING = ("keep", "replace")


@dataclass(frozen=True)
class Block:
    """One block of a network in a :class:`Report`.

    Attributes:
        name: its path in the model; empty for the model itself.
        kind: ``"unit"``, ``"sequence"``, ``"fusion"``, or ``"network"``: the stem and head of this package's networks;
            ``"engine"``: a part that an engine executes.
        fast: whether it takes the fused path, as it stands now.
        reason: why it does not, or what of it does not.
    """

    name: str
    kind: str
    fast: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """The blocks of an accelerated model; ``str(report)`` lists those with a reason.

    Attributes:
        blocks: sorted by name.
        impl: the implementation that was asked for, by the argument or the environment.
    """

    blocks: tuple[Block, ...]
    impl: str

    @property
    def fast(self) -> int:
        return sum(b.fast for b in self.blocks)

    def __str__(self) -> str:
        lines = [f"{self.fast} of {len(self.blocks)} blocks take the fused path (impl={self.impl!r})"]
        lines += [f"  {b.name or _unnamed(b)} ({b.kind}): {b.reason}" for b in self.blocks if b.reason]
        return "\n".join(lines)


def _unnamed(block: Block) -> str:
    return "whole model" if block.kind == "engine" else "stem and head"


def accelerate(model: nn.Module, *, impl: str = "auto", memory: str = "lean", checkpointing: str = "keep") -> nn.Module:
    """Let an HRNet's residual units, branches and fusions execute fused, in training and evaluation, in place.

    Recognises this package's networks, the authors' repositories', timm's and OpenMMLab's by the structure of their
    modules. Parameters, keys, signatures, return types, hooks on the accelerated modules and ``isinstance`` stay as
    they are; optimizers made before stay valid. A block that differs (another convolution or normalisation, hooks
    inside, checkpointing flags) keeps its own forward; :func:`explain` lists it with the reason. What a block
    computes is compared with its own forward before it is replaced.

    Args:
        model: the network, or any module that contains one.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``: of the elementwise passes and the
            fusion's sums. Convolutions stay with the library. For ``"auto"``, the environment variable
            ``HRNET_FAST_IMPL`` counts as it is set now, and then the device of each call.
        memory: what is kept for backward: ``"fast"`` convolution outputs and activations, ``"lean"`` convolution
            outputs only, ``"min"`` the input of each branch only; its convolutions run once more in backward.
        checkpointing: of residual units that run again in backward by a flag of theirs (``with_cp``,
            ``gradient_checkpointing``, ``grad_checkpointing``). ``"keep"``: they keep their own forward. ``"replace"``:
            they execute fused, with ``memory="min"``. Running statistics then move once per step; units that use
            ``torch.utils.checkpoint`` as OpenMMLab's do move them twice. Flags stay as they are set.

    Returns:
        `model` itself.

    Raises:
        InputError: no module of an HRNet was found, or an unknown `memory` or `checkpointing`.
        ImplementationError: an unknown implementation, or one that cannot run here.
    """
    check_module("accelerate", model)
    if _engine_parts(model):
        raise InputError(
            f"accelerate: engines execute parts of this {type(model).__name__}, which fused blocks would not change; "
            "call restore(model) before."
        )
    if not any(is_fusion(module) for module in model.modules()):
        raise InputError(
            f"accelerate: {type(model).__name__} has no module with `branches` and `fuse_layers`, as every HRNet has; "
            "give the model itself, after it was built."
        )
    return accelerate_blocks(model, impl, memory, checkpointing)


def accelerate_blocks(model: nn.Module, impl: str, memory: str, checkpointing: str = "keep") -> nn.Module:
    """:func:`accelerate` for a module known to be of an HRNet: one of its stages, or a network without fusions."""
    if not isinstance(memory, str) or memory not in MEMORY:
        raise InputError(f"accelerate: memory={shown(memory)}; accepted are 'fast', 'lean' and 'min'.")
    if not isinstance(checkpointing, str) or checkpointing not in CHECKPOINTING:
        raise InputError(f"accelerate: checkpointing={shown(checkpointing)}; accepted are 'keep' and 'replace'.")
    resolve(impl)
    restore(model)
    return apply_settings(model, Settings(request(impl), memory, checkpointing))


def apply_settings(model: nn.Module, settings: Settings) -> nn.Module:
    """:func:`accelerate_blocks` for a model that is not accelerated."""
    verdicts: dict[object, Settings] = {}
    for module, kind in list(_candidates(model)):
        if isinstance(module, FusedModule):
            continue  # it is in several places
        units = [m for m in flat(module) if looks_like_unit(m)] if isinstance(module, nn.Sequential) else []
        for unit in units:
            found = _verdict(unit, FusedUnit, settings, verdicts)
            if isinstance(found, str):
                vars(unit)["fused_unsupported_reason"] = Refusal(found)
        verdict: Settings | str = settings
        if kind is not FusedSequence:  # a plain nn.Sequential needs no comparison
            verdict = _verdict(module, kind, settings, verdicts)
        if isinstance(verdict, str):
            vars(module)["fused_unsupported_reason"] = Refusal(verdict)
            continue
        vars(module).update(fused_settings=verdict, last_call_reason=None)
        module.__class__ = fused_class(kind, type(module))
    return model


def _verdict(
    module: nn.Module, kind: type[FusedModule], settings: Settings, verdicts: dict[object, Settings]
) -> Settings | str:
    """Return the settings with which `kind` computes what the module does, or why there are none."""
    known = known_settings(module, settings)
    if known is not None:
        return known
    key = signature(module)
    if key not in verdicts:
        reason = unsupported.unit(module, settings.checkpointing) if kind is FusedUnit else None
        found = reason or check_equivalence(module, kind, settings)
        if isinstance(found, str):
            return found  # of this one alone: others may lack the hook, or whatever is in the way
        verdicts[key] = found
    return verdicts[key]


def restore(model: nn.Module) -> nn.Module:
    """Undo :func:`accelerate`, and :func:`hrnet_fast.optimize_for_inference` on a model, in place; return the model.

    Raises:
        InputError: `model` is no module.
    """
    check_module("restore", model)
    restore_parts(model)
    for module in model.modules():
        for name in ADDED:
            vars(module).pop(name, None)
        if isinstance(module, FusedModule):
            module.__class__ = module.unfused_class  # type: ignore[assignment]
    return model


def restore_parts(model: nn.Module) -> None:
    """Undo :func:`hrnet_fast.optimize_for_inference` on a model, in place."""
    for _, module in _engine_parts(model):
        module.__class__ = type(module).replaced_class  # type: ignore[assignment]


def _engine_parts(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the names and modules of the parts that engines execute."""
    return [(name, m) for name, m in model.named_modules() if hasattr(type(m), "replaced_class")]


def explain(model: Any) -> Any:
    """Return a :class:`Report`: whether each block of `model` takes the fused path, as it stands now, and why not.

    For an engine, return what it prepared and chose (:meth:`hrnet_fast.Engine.explain`). A reason that only a call
    shows (an input that is no batch of images, a compiler that traces) is in the report after such a call.

    Raises:
        InputError: `model` is not accelerated, or neither a module nor an engine.
    """
    if callable(getattr(model, "explain", None)) and not isinstance(model, (nn.Module, type)):
        return model.explain()
    check_module("explain", model)
    fast = [(name, m) for name, m in model.named_modules() if isinstance(m, FusedModule)]
    plain = [(name, m) for name, m in model.named_modules() if getattr(m, "fused_unsupported_reason", None)]
    parts = _engine_parts(model)
    if not fast and not plain and not parts:
        raise InputError(f"explain: this {type(model).__name__} is not accelerated; call accelerate(model) first.")
    blocks = [Block(name, _kind(m), False, str(m.fused_unsupported_reason)) for name, m in plain]
    blocks += [Block(name, "engine", *m.engine_state()) for name, m in parts]
    for name, m in fast:
        reasons = m.unsupported_reasons()
        if m.last_call_reason and m.last_call_reason not in reasons:
            reasons.append(f"at the last call: {m.last_call_reason}")
        # A sequence runs what it can: a reason is about a part of it.
        blocks.append(Block(name, _kind(m), not reasons or m.partly_fused(), "; ".join(dict.fromkeys(reasons))))
    impl = fast[0][1].fused_settings.implementation.name if fast else "auto"
    return Report(tuple(sorted(blocks, key=lambda b: b.name)), impl)


def _kind(module: nn.Module) -> str:
    if isinstance(module, HRNetReference):
        return "network"
    return "sequence" if isinstance(module, nn.Sequential) else "unit" if looks_like_unit(module) else "fusion"


def _candidates(model: nn.Module) -> Iterator[tuple[nn.Module, type[FusedModule]]]:
    """Yield the modules to accelerate, outermost first; the modules inside a sequence or a unit execute with it."""
    if isinstance(model, HRNetReference) and not model._head.needs_stem:  # such a head reads a map inside the stem
        yield model, FusedNetwork
    if is_fusion(model):
        yield model, FusedModularizedBlock
        yield from _candidates(model.branches)  # type: ignore[arg-type]
    elif _is_sequence(model):
        yield model, FusedSequence
    elif looks_like_unit(model):
        yield model, FusedUnit
    else:
        for child in model.children():
            yield from _candidates(child)


def is_fusion(module: nn.Module) -> bool:
    """Whether `module` has the attributes of a modularized block that fuses."""
    layers, branches = getattr(module, "fuse_layers", None), getattr(module, "branches", None)
    return isinstance(layers, nn.ModuleList) and isinstance(branches, nn.ModuleList) and len(branches) > 1


def _is_sequence(module: nn.Module) -> bool:
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    layers = list(flat(module))
    rows = any(unsupported.conv_norm_relu(*layers[k : k + 3]) is None for k in range(len(layers) - 2))
    return rows or any(looks_like_unit(layer) for layer in layers)
