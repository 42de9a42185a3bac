"""Residual units and convolution sequences of any code base, recognised by structure and read at every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from hrnet_fast.implementations import auto_is_reference
from hrnet_fast.training import batch_norm
from hrnet_fast.training.memory_format import sums_by_channel_blocks
from hrnet_fast.training.residual_chain import Chain, ConvNorm, Unit, run_chain

# What a code base sets to have a unit run again in backward, in place of keeping activations.
_CHECKPOINT_FLAGS = ("with_cp", "gradient_checkpointing", "grad_checkpointing")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CONVOLUTION = (nn.Conv2d.forward, nn.Conv2d._conv_forward)  # as PyTorch has them: some tools put others in their place
_ROLES = ("conv", "bn", "relu", "act", "downsample")


def hooked(modules: Sequence[nn.Module]) -> str | None:
    """Say which module has a hook that a fused path would not call, or None."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "a global module hook is registered"
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        return "a global module hook is registered"
    for module in modules:
        if any(getattr(module, name) for name in _HOOKS):
            return f"a hook is registered on its {type(module).__name__}"
    return None


def conv_unsupported_reason(module: nn.Module | None) -> str | None:
    if not isinstance(module, nn.Conv2d):
        return f"{type(module).__name__} is no 2-d convolution"
    if (type(module).forward, type(module)._conv_forward) != _CONVOLUTION or "forward" in vars(module):
        return f"{type(module).__name__} is no plain convolution"
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return f"its convolution pads by {module.padding_mode!r} {module.padding}"
    return None


def norm_unsupported_reason(module: nn.Module | None) -> str | None:
    if module is None:
        return "a normalisation is missing"
    if "forward" in vars(module):
        return f"the forward of its {type(module).__name__} was replaced"
    return batch_norm.unsupported_reason(module)


def conv_norm_unsupported_reason(conv: nn.Module | None, norm: nn.Module | None) -> str | None:
    """Say why a convolution and the normalisation behind it cannot be fused, or None."""
    reason = conv_unsupported_reason(conv) or norm_unsupported_reason(norm)
    if reason is None and norm.num_features != conv.out_channels:  # type: ignore[union-attr]
        return f"its normalisation has {norm.num_features} channels, its convolution {conv.out_channels}"  # type: ignore[union-attr]
    return reason


def looks_like_unit(module: nn.Module) -> bool:
    """Whether `module` has a residual unit's attributes; :func:`unit_unsupported_reason` says if it can be fused."""
    children = dict(module.named_children())
    return {"conv1", "bn1", "conv2", "bn2"} <= children.keys() and not {"conv4", "layer1", "branches"} & children.keys()


def depth(unit: nn.Module) -> int:
    return 3 if getattr(unit, "conv3", None) is not None else 2


def unit_unsupported_reason(unit: nn.Module) -> str | None:
    """Say why a residual unit cannot be fused as it stands now, or None."""
    if "forward" in vars(unit):
        return "its forward was replaced"
    for flag in _CHECKPOINT_FLAGS:
        if getattr(unit, flag, False):
            return f"{flag} is set: it already computes its activations again"
    parts = list(unit.children())
    for k in range(1, depth(unit) + 1):
        reason = conv_norm_unsupported_reason(getattr(unit, f"conv{k}", None), getattr(unit, f"bn{k}", None))
        if reason:
            return reason
    if getattr(unit, "downsample", None) is None and not _keeps_shape(unit):
        return "its convolutions change the shape that its identity shortcut keeps"
    for name, child in unit.named_children():
        reason = _child_unsupported_reason(name, child)
        if reason:
            return reason
    shortcut = getattr(unit, "downsample", None)
    if isinstance(shortcut, nn.Sequential):
        parts += shortcut.children()
    return hooked(parts)


def _child_unsupported_reason(name: str, child: nn.Module) -> str | None:
    if isinstance(child, nn.Identity) and name != "downsample":
        return None
    role = name.rstrip("123")
    if role not in _ROLES:
        return f"its {name} ({type(child).__name__}) is no part of a plain residual unit"
    if role in ("relu", "act") and type(child) is not nn.ReLU:
        return f"its activation is {type(child).__name__}, not ReLU"
    if role == "downsample":
        layers = list(child.children())
        if not isinstance(child, nn.Sequential) or len(layers) != 2 or type(child).forward is not nn.Sequential.forward:
            return "its shortcut is not one convolution and one normalisation"
        return conv_norm_unsupported_reason(layers[0], layers[1])
    return None


def _keeps_shape(unit: nn.Module) -> bool:
    convs: list[Any] = [unit.get_submodule(f"conv{k}") for k in range(1, depth(unit) + 1)]
    same = all(
        (s, 2 * p) == (1, d * (k - 1))
        for c in convs
        for s, p, d, k in zip(c.stride, c.padding, c.dilation, c.kernel_size, strict=True)
    )
    return same and convs[0].in_channels == convs[-1].out_channels


def _step(conv: nn.Module, norm: nn.Module) -> ConvNorm:
    assert isinstance(conv, nn.Conv2d)
    assert not isinstance(conv.padding, str)
    return ConvNorm(
        conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, batch_norm.read(norm)
    )


class Layers(NamedTuple):
    """The modules of a fusible unit or row: convolutions with their normalisations; see :class:`Unit`."""

    pairs: tuple[tuple[nn.Module, nn.Module], ...]
    shortcut: tuple[nn.Module, nn.Module] | bool | None

    def read(self) -> Unit:
        """Describe them as they stand at a call."""
        shortcut = self.shortcut
        return Unit(
            tuple(_step(*pair) for pair in self.pairs), _step(*shortcut) if isinstance(shortcut, tuple) else shortcut
        )


def unit_layers(unit: nn.Module) -> Layers:
    """Return the layers of a unit that has no :func:`unit_unsupported_reason`."""
    pairs = tuple((unit.get_submodule(f"conv{k}"), unit.get_submodule(f"bn{k}")) for k in range(1, depth(unit) + 1))
    shortcut = getattr(unit, "downsample", None)
    return Layers(pairs, True if shortcut is None else tuple(shortcut.children()))  # type: ignore[arg-type]


def read_unit(unit: nn.Module) -> Unit:
    """Describe a unit that has no :func:`unit_unsupported_reason`."""
    return unit_layers(unit).read()


def flat(sequence: nn.Sequential) -> Iterator[nn.Module]:
    """The sequence's layers; plain sequences inside it are opened, unless something hangs on them."""
    for child in sequence:  # not children(), which names a layer that stands in two places once
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward and not hooked([child]):
            yield from flat(child)
        else:
            yield child


def conv_norm_relu_unsupported_reason(conv: nn.Module, norm: nn.Module, relu: nn.Module) -> str | None:
    """Say why three neighbours are no fusible convolution, normalisation and ReLU, or None."""
    if type(relu) is not nn.ReLU:
        return f"{type(relu).__name__} is no ReLU"
    return conv_norm_unsupported_reason(conv, norm) or hooked([conv, norm, relu])


def read_conv_norm_relu(conv: nn.Module, norm: nn.Module) -> Unit:
    return Unit((_step(conv, norm),), None)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What convolutions of `x` compute in under the autocast that is on, or None where none is."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def call_unsupported_reason(x: Tensor, impl: str) -> str | None:
    """Say why a call on `x` takes the plain path, whatever the module."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "under torch.compile, torch.export and tracing the plain modules run (compilers fuse them themselves)"
    if isinstance(x, torch.fx.Proxy):  # asked for its device, it would write that down
        return "under torch.fx the plain modules run"
    if type(x) not in (Tensor, nn.Parameter) or x.device.type not in ("cpu", "cuda"):
        return f"input is a {type(x).__name__} on {x.device.type}"
    if torch._C._functorch.peek_interpreter_stack() is not None:  # type: ignore[attr-defined]
        return "inside a functorch transform"
    if forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    if x.dim() != 4 or x.numel() == 0:
        return f"input has shape {tuple(x.shape)}"
    if auto_is_reference(impl, x):
        return f"no fused operators for {x.dtype} on {x.device.type} here: `hrnet-fast doctor` says what is missing"
    return None


def run_units(units: Sequence[Unit], x: Tensor, impl: str, minimal: bool) -> Tensor | str:
    """Run fusible units on `x`, or say why this call cannot."""
    dtype = autocast_dtype(x)
    if dtype is not None and x.dtype != dtype and units[0].shortcut is True:
        return "the first shortcut adds a float32 input to half precision"
    if dtype is None and any(s.weight.dtype != x.dtype for u in units for s in u.all_steps()):
        return "weights and input differ in dtype"
    blocks = dtype is None and units[0].steps[0].norm.batch and sums_by_channel_blocks(x)
    return run_chain(Chain(tuple(units), impl, minimal, dtype, blocks), x)
