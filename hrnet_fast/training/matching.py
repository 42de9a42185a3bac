"""Recognises residual units and rows of convolutions by structure, and reads their layers at every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.modules import module as torch_module

from hrnet_fast.training.batch_norm import read_batch_norm
from hrnet_fast.training.conv_norm import ConvNorm
from hrnet_fast.training.residual_chain import Unit

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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


def altered(modules: Sequence[nn.Module]) -> str | None:
    """Say which module has a hook or another forward than its class, which a fused path would not call, or None."""
    for module in modules:
        if "forward" in vars(module):
            return f"the forward of its {type(module).__name__} was replaced"
    return hooked(modules)


def is_plain_sequence(module: nn.Module) -> bool:
    """Whether a module runs its children one by one, accelerated or not."""
    kind = getattr(type(module), "unfused_class", type(module))
    return isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward


def looks_like_unit(module: nn.Module) -> bool:
    """Whether `module` has a residual unit's attributes; :func:`unsupported.unit` says if it can be fused."""
    children = dict(module.named_children())
    return {"conv1", "bn1", "conv2", "bn2"} <= children.keys() and not {"conv4", "layer1", "branches"} & children.keys()


def unit_depth(unit: nn.Module) -> int:
    """Return the number of convolutions on a unit's residual path."""
    return 3 if getattr(unit, "conv3", None) is not None else 2


class Layers(NamedTuple):
    """The modules of a supported unit or row: convolutions with their normalisations; see :class:`Unit`."""

    pairs: tuple[tuple[nn.Module, nn.Module], ...]
    shortcut: tuple[nn.Module, nn.Module] | bool | None

    def read(self) -> Unit:
        """Describe them as they stand at a call."""
        shortcut = read_conv_norm(*self.shortcut) if isinstance(self.shortcut, tuple) else self.shortcut
        return Unit(tuple(read_conv_norm(*pair) for pair in self.pairs), shortcut)


def unit_layers(unit: nn.Module) -> Layers:
    """Return the layers of a supported unit."""
    pairs = tuple(
        (unit.get_submodule(f"conv{k}"), unit.get_submodule(f"bn{k}")) for k in range(1, unit_depth(unit) + 1)
    )
    shortcut = getattr(unit, "downsample", None)
    return Layers(pairs, True if shortcut is None else tuple(shortcut.children()))  # type: ignore[arg-type]


def read_conv_norm(conv: nn.Module, norm: nn.Module) -> ConvNorm:
    """Describe a supported convolution and its normalisation as they stand at a call."""
    assert isinstance(conv, nn.Conv2d)
    assert not isinstance(conv.padding, str)
    own = read_batch_norm(norm)
    return ConvNorm(conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, own)


def flat(sequence: nn.Sequential) -> Iterator[nn.Module]:
    """Yield the sequence's layers, and those of plain sequences inside it that have no hooks."""
    for child in sequence:  # not children(), which yields a layer that is in two places once
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward and not altered([child]):
            yield from flat(child)
        else:
            yield child
