"""Reasons why a module or a call cannot execute fused; every function returns one in words, or None if it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd import forward_ad

from hrnet_fast.implementations import RequestedImplementation
from hrnet_fast.training.batch_norm import channels_of, is_frozen
from hrnet_fast.training.conv_norm import autocast_dtype
from hrnet_fast.training.matching import altered, is_plain_sequence, unit_depth

# Flags by which code bases let a unit run again in backward instead of keeping its activations.
_CHECKPOINT_FLAGS = ("with_cp", "gradient_checkpointing", "grad_checkpointing")
_CONVOLUTION = (nn.Conv2d.forward, nn.Conv2d._conv_forward)  # PyTorch's own: some tools replace them
_NORMALISATIONS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)
_TENSORS = (Tensor, nn.Parameter)
_ROLES = ("conv", "bn", "relu", "act", "downsample")


def conv(module: nn.Module | None) -> str | None:
    if not isinstance(module, nn.Conv2d):
        return f"{type(module).__name__} is no 2-d convolution"
    if (type(module).forward, type(module)._conv_forward) != _CONVOLUTION or "forward" in vars(module):
        return f"{type(module).__name__} is no plain convolution"
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return f"its convolution pads by {module.padding_mode!r} {module.padding}"
    return _parameters(module, module._parameters, ("weight", "bias"))


def _parameters(module: nn.Module, held: dict[str, Any], names: Sequence[str]) -> str | None:
    """Of a layer whose tensors are to be where its class keeps them."""
    gone = [name for name in names if name not in held]
    return f"{gone[0]} of its {type(module).__name__} is parametrised or was replaced by an attribute" if gone else None


def norm(module: nn.Module | None) -> str | None:
    if module is None:
        return "a normalisation is missing"
    if "forward" in vars(module):
        return f"the forward of its {type(module).__name__} was replaced"
    if type(module).forward not in _NORMALISATIONS:
        return None if is_frozen(module) else f"{type(module).__name__} is no plain batch normalisation"
    buffers = _parameters(module, module._buffers, ("running_mean", "running_var"))
    return buffers or _parameters(module, module._parameters, ("weight", "bias"))


def conv_norm(convolution: Any, normalisation: Any) -> str | None:
    """Of a convolution and the normalisation behind it."""
    reason = conv(convolution) or norm(normalisation)
    if reason is None and channels_of(normalisation) != convolution.out_channels:
        return (
            f"its normalisation has {channels_of(normalisation)} channels, its convolution {convolution.out_channels}"
        )
    return reason


def conv_norm_relu(convolution: nn.Module, normalisation: nn.Module, activation: nn.Module) -> str | None:
    """Of three neighbours in a sequence, their hooks included."""
    if type(activation) is not nn.ReLU:
        return f"{type(activation).__name__} is no ReLU"
    return conv_norm(convolution, normalisation) or altered([convolution, normalisation, activation])


def checkpoint_flag(module: nn.Module) -> str | None:
    """Return the name of the flag by which a unit is to run again in backward, or None."""
    return next((flag for flag in _CHECKPOINT_FLAGS if getattr(module, flag, False)), None)


def unit(module: nn.Module, checkpointing: str = "keep") -> str | None:
    """Of a residual unit as it stands now, the hooks of its layers included.

    Args:
        checkpointing: ``"keep"`` refuses units that checkpoint themselves, ``"replace"`` does not.
    """
    if "forward" in vars(module):
        return "its forward was replaced"
    flag = checkpoint_flag(module) if checkpointing == "keep" else None
    if flag:
        return f"{flag} is set: it already computes its activations again; checkpointing='replace' takes it over"
    for k in range(1, unit_depth(module) + 1):
        reason = conv_norm(getattr(module, f"conv{k}", None), getattr(module, f"bn{k}", None))
        if reason:
            return reason
    shortcut = getattr(module, "downsample", None)
    if shortcut is None and not _keeps_shape(module):
        return "its convolutions change the shape that its identity shortcut keeps"
    for name, child in module.named_children():
        reason = _child_of_unit(name, child)
        if reason:
            return reason
    inner = shortcut.children() if isinstance(shortcut, nn.Sequential) else ()
    return altered([*module.children(), *inner])


def _child_of_unit(name: str, child: nn.Module) -> str | None:
    if (isinstance(child, nn.Identity) or type(child) is nn.ReLU) and name != "downsample":  # openseg has a `relu_in`
        return None
    role = name.rstrip("123")
    if role not in _ROLES:
        return f"its {name} ({type(child).__name__}) is no part of a plain residual unit"
    if role in ("relu", "act"):
        return f"its activation is {type(child).__name__}, not ReLU"
    if role == "downsample":
        layers = list(child.children())
        if not isinstance(child, nn.Sequential) or len(layers) != 2 or type(child).forward is not nn.Sequential.forward:
            return "its shortcut is not one convolution and one normalisation"
        return conv_norm(*layers)
    return None


def _keeps_shape(module: nn.Module) -> bool:
    convs: list[Any] = [module.get_submodule(f"conv{k}") for k in range(1, unit_depth(module) + 1)]
    same = all(
        (s, 2 * p) == (1, d * (k - 1))
        for c in convs
        for s, p, d, k in zip(c.stride, c.padding, c.dilation, c.kernel_size, strict=True)
    )
    return same and convs[0].in_channels == convs[-1].out_channels


def v2_head(layers: nn.Module) -> str | None:
    """Of HRNetV2's head: 1x1 convolution, normalisation, ReLU and the classifier."""
    parts: list[Any] = list(layers.children())
    if len(parts) != 4 or not is_plain_sequence(layers):
        return "its head is not a sequence of convolution, normalisation, ReLU and convolution"
    reason = conv_norm_relu(*parts[:3]) or conv(parts[3])
    if reason is None:
        first = parts[0]
        plain = {(1, 1)} == {tuple(first.kernel_size), tuple(first.stride)} and tuple(first.padding) == (0, 0)
        if not plain or first.groups != 1:
            return "the first convolution of its head is not 1x1 with stride 1, without padding and groups"
    return reason or altered([layers, *parts])


def call(xs: Sequence[Tensor], requested: RequestedImplementation) -> str | None:
    """Of a call on maps, for any module.

    Raises:
        ImplementationError: a named implementation for another device.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "under torch.compile, torch.export and tracing the plain modules run (compilers fuse them themselves)"
    if torch._C._functorch.peek_interpreter_stack() is not None:  # type: ignore[attr-defined]
        return "inside a functorch transform"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    for x in xs:
        if isinstance(x, torch.fx.Proxy):  # reading its device would add a node to the graph
            return "under torch.fx the plain modules run"
        if type(x) not in _TENSORS or not (x.is_cuda or x.is_cpu):
            return f"input is a {type(x).__name__} on {x.device.type}"
        if x.dim() != 4 or x.numel() == 0:
            return f"input has shape {tuple(x.shape)}"
        if requested.name == "auto" and "reference" in requested.operators(x):
            return f"no fused operators for {x.dtype} on {x.device.type} here: `hrnet-fast doctor` says what is missing"
    return None


def promotion(x: Tensor) -> str | None:
    """Of a call on `x` whose layers have a normalisation that multiplies by float32 buffers."""
    if autocast_dtype(x) is None:
        return None
    return "under autocast its frozen normalisation, which multiplies by float32 buffers, returns float32"


def dtypes(xs: Sequence[Tensor], weights_have_dtype_of: Callable[[Tensor], bool]) -> str | None:
    """Of a call on several maps, which one convolution's kernel or a sum takes together."""
    dtype = autocast_dtype(xs[0])
    if any(x.dtype != (dtype or xs[0].dtype) for x in xs):
        return "branches differ in dtype from what convolutions compute in"
    if dtype is None and not weights_have_dtype_of(xs[0]):
        return "weights and branches differ in dtype"
    return None
