"""Finds the parts of a model around its HRNet that a plan can be made of: what its own code calls, and with what."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from hrnet_fast.errors import HRNetFastError, InputError
from hrnet_fast.inference.planning.lowering import make_plan
from hrnet_fast.inference.planning.tracer import InputShape, meta_copy
from hrnet_fast.training.accelerate import is_fusion

_CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Signature:
    """How a part is called: the structure of its arguments and those that are no tensors."""

    spec: TreeSpec
    constants: tuple[Any, ...]

    def tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """Return the tensors among a call's arguments, or None where the rest of them differs."""
        leaves, spec = tree_flatten((args, kwargs))
        tensors, constants = _split(leaves)
        if spec != self.spec or any(type(a) is not type(b) for a, b in zip(constants, self.constants, strict=True)):
            return None
        return tensors if constants == self.constants else None

    def arguments(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call with these tensors."""
        given = iter(tensors)
        leaves = [next(given) if leaf is Tensor else leaf for leaf in self.constants]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return args, kwargs


def _split(leaves: list[Any]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Return the tensors, and all leaves with the class in place of each tensor."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)


class PartCall(nn.Module):
    """A part as a module of one input: [N, C, H, W], or a tuple of such maps where its arguments have several."""

    def __init__(self, part: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.part = part
        self._signature = signature
        self.training = part.training

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Any:
        """Return what the part returns."""
        args, kwargs = self._signature.arguments([x] if isinstance(x, Tensor) else list(x))
        return self.part.forward(*args, **kwargs)


@dataclass(frozen=True)
class Part:
    """A module that can be followed, by its name in the model, and the call by which that was found."""

    name: str
    signature: Signature
    shape: InputShape


def takes_more_than_an_image(model: nn.Module) -> bool:
    """Whether a model around an HRNet has a forward of several parameters, as OpenMMLab's with their data samples."""
    return len(_parameters(model)) > 1 and not _holds_stages(model)


def _holds_stages(model: nn.Module) -> bool:
    """Whether a module is an HRNet itself, whose stages are rows of fusions."""
    return any(is_fusion(module) for stage in model.children() for module in [stage, *stage.children()])


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Return the named parameters of the model's forward; none where they are not known."""
    try:
        found = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def find_parts(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[Part]:
    """Return the largest modules around each HRNet that can be followed, and those that take exactly their maps.

    The model's forward is run once on tensors without data, as far as it gets. Parts are modules that it calls: of
    nested ones the outermost that can be followed. A neck or a head is one if all its inputs are outputs of the parts
    before it.

    Args:
        model: in evaluation mode.
        shape: of an image batch [N, C, H, W].
        dtype: of the model's parameters.

    Raises:
        InputError: no part around an HRNet can be followed.
    """
    modules = dict(model.named_modules())
    trunks = {name for name, m in modules.items() if any(is_fusion(inner) for inner in m.modules())}
    if not trunks:
        raise InputError(
            f"optimize_for_inference: {type(model).__name__} has no module with `branches` and `fuse_layers`, as every "
            "HRNet has."
        )
    if takes_more_than_an_image(model):
        trunks.discard("")  # its own methods call its parts, not its forward
    calls, failure = _observe(model, shape, dtype)
    found, reasons = list[Part](), list[str]()
    made: set[int] = set()  # ids of the parts' outputs, which `calls` keeps alive

    def visit(call: _Call) -> None:
        signature = call.signature
        around = call.name in trunks
        if signature is not None and (around or {id(t) for t in call.tensors} <= made):
            part = Part(call.name, signature, call.shape)
            reason = _cannot_follow(modules[call.name], part)
            if reason is None:
                if all(part.name != other.name for other in found):
                    found.append(part)
                made.update(id(leaf) for leaf in tree_leaves(call.output) if isinstance(leaf, Tensor))
                return
            reasons.append(reason)
        if around or call.name == "":
            for inner in call.inner:
                visit(inner)

    for call in calls:
        visit(call)
    if not any(part.name in trunks for part in found):
        found = [_called_directly(modules, trunks, shape, reasons, failure, type(model).__name__)]
    return found


@dataclass
class _Call:
    """One call of a module's forward on tensors without data."""

    name: str
    signature: Signature | None = None
    tensors: list[Tensor] = field(default_factory=list)
    output: Any = None
    inner: list[_Call] = field(default_factory=list)

    @property
    def shape(self) -> InputShape:
        shapes = tuple(tuple(t.shape) for t in self.tensors)
        return shapes[0] if len(shapes) == 1 else shapes


def _observe(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[_Call], str]:
    """Return the calls of modules in one forward of a copy without data, and why it ended early, if it did.

    Arguments besides the image are their defaults, or None.
    """
    root = _Call("")
    open_calls = [root]
    further = [p for p in _parameters(model)[1:] if p.default is p.empty]  # data samples, in mmpose
    try:
        twin = meta_copy(model)
        for name, module in twin.named_modules():
            if "forward" not in vars(module):
                vars(module)["forward"] = _recorder(name, module.forward, open_calls)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            twin(torch.empty(shape, dtype=dtype, device="meta"), **{p.name: None for p in further})
    except Exception as error:  # a model's forward may raise anything, after its HRNet too
        return root.inner, f" Its own forward ends with {type(error).__name__}: {str(error)[:200]}"
    return root.inner, ""


def _recorder(name: str, forward: Any, open_calls: list[_Call]) -> Any:
    """Return a function that calls a module's forward and records the call within the one that is open."""

    def record(*args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        call = _Call(name)
        call.tensors, constants = _split(leaves)
        maps = bool(call.tensors) and all(t.dim() == 4 and t.is_floating_point() for t in call.tensors)
        if maps and all(c is Tensor or isinstance(c, _CONSTANTS) for c in constants):
            call.signature = Signature(spec, constants)
        open_calls[-1].inner.append(call)
        open_calls.append(call)
        try:
            call.output = forward(*args, **kwargs)
        finally:
            open_calls.pop()
        return call.output

    return record


def _cannot_follow(module: nn.Module, part: Part) -> str | None:
    """Return why a module cannot be a part, or None."""
    if "forward" in vars(module):
        return f"{part.name}: its forward was replaced by an attribute of the instance"
    try:
        make_plan(PartCall(module, part.signature), part.shape, torch.float32)
    except HRNetFastError as error:
        return f"{part.name or type(module).__name__}: {error}"
    return None


def _called_directly(
    modules: dict[str, nn.Module], trunks: set[str], shape: tuple[int, ...], reasons: list[str], failure: str, kind: str
) -> Part:
    """Return the largest module around an HRNet that takes the image, where the model's forward did not show one."""
    image = torch.empty(shape, device="meta")
    leaves, spec = tree_flatten(((image,), {}))
    signature = Signature(spec, _split(leaves)[1])
    for name in _outermost_first(trunks):
        if is_fusion(modules[name]):
            continue
        part = Part(name, signature, shape)
        reason = _cannot_follow(modules[name], part)
        if reason is None:
            return part
        reasons.append(reason)
    raise InputError(
        f"optimize_for_inference: no part of {kind} around its HRNet can be followed.{failure} "
        + " | ".join(dict.fromkeys(reasons))[:600]
    )


def _outermost_first(names: set[str]) -> Iterator[str]:
    yield from sorted(names, key=lambda name: (name.count(".") + bool(name), name))
