"""What a captured step has of its modules as constants, and whether it changed since."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from hrnet_fast.training.structure_cache import APART
from hrnet_fast.training.tensor_list import tensor_list

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_UNCOMPARED = (nn.modules.conv._ConvNd, DistributedDataParallel)
_NUMBERS = (int, float, str, type(None))
# Attributes that change no number, or that are compared by other means.
_LEFT_OUT = {*APART, "training", "fused_unsupported_reason", "num_features", "affine", "inplace"}
_LEFT_OUT |= {name for name in vars(nn.Module()) if name.startswith("_")}
# Classes that compute the same in both modes.
_MODELESS = (nn.Conv2d, nn.ReLU, nn.Sequential, nn.ModuleList, nn.Identity)


class ModelState:
    """Modules as they are now: classes, numbers in attributes, children, and the tensors they have, by address.

    :meth:`change` is called before every replay. It compares lists that C code makes and compares; a comparison of all
    attributes of all modules would take longer than the rest of a replay.

    Not compared are attributes of convolutions, which nobody changes, those of DistributedDataParallel, which it
    changes itself, and attributes of other types than numbers and texts.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        named = {m: n for root in roots for n, m in root.named_modules() if not isinstance(m, torch.jit.ScriptModule)}
        self._modules = list(named)
        self._names = list(named.values())
        self._types = list(map(type, self._modules))
        dicts: list[dict[str, Any]] = [vars(module) for module in self._modules]
        self._hooks = [own[name] for own in dicts for name in _HOOKS]
        self._unhooked_at = -1  # the number of the next hook of the process when there was none here
        self._children = [own["_modules"] for own in dicts]
        self._children_then = [children.copy() for children in self._children]
        pairs = list(zip(self._names, dicts, strict=True))
        owners = [(n, own[kind], k) for n, own in pairs for kind in ("_parameters", "_buffers") for k in own[kind]]
        self._owners = [(own, k) for _, own, k in owners]
        self._own = [own for pair in dicts for own in (pair["_parameters"], pair["_buffers"]) if own]
        self._own_then = [own.copy() for own in self._own]
        self._small = [(own, k) for own, k in self._owners if own[k] is not None and own[k].numel() < 2]
        self._small_then = [own[k] for own, k in self._small]
        self._tensor_names = [f"{n}.{k}".strip(".") for n, _, k in owners]
        self._tensors: list[Tensor | None] = [own[k] for own, k in self._owners]
        self.buffers = tensor_list([t for t in self._tensors if t is not None and not isinstance(t, nn.Parameter)])
        parameters = [t for t in self._tensors if isinstance(t, nn.Parameter)]
        self._parameters = tensor_list(parameters)
        self._held = [p.detach() for p in parameters]  # memory that graphs write to stays theirs
        self._numbers = _numbers_of([vars(m) for m in self._modules if not isinstance(m, _UNCOMPARED)])
        self._dicts = dicts
        self._with_modes = [vars(m) for m in self._modules if type(m) not in _MODELESS]

    def change(self) -> str | None:
        """Name what changed, or None."""
        try:
            if not self._has_same_tensors():
                pairs = zip(self._owners, self._tensors, self._tensor_names, strict=True)
                name = next((name for (own, k), then, name in pairs if own[k] is not then), "a parameter or buffer")
                return f"{name} was replaced by another tensor"
            if not self._parameters.have_same_memory():
                return "a parameter has other memory"
            if not self._parameters.require_same_gradients():
                return "other parameters require gradients"
            if self._children != self._children_then:
                return "a module was replaced or added"
            if list(map(type, self._modules)) != self._types:
                return "a module's class changed, as accelerate and restore do"
            for name, (owners, then) in self._numbers.items():
                if list(map(operator.itemgetter(name), owners)) != then:
                    return f"{name} of {self._owner(name)} changed"
        except (KeyError, RuntimeError) as error:
            return f"the model's attributes changed ({type(error).__name__}: {error})"
        return None

    def accept_numbers(self) -> bool:
        """Take the numbers as they are now; return whether all are still there."""
        try:
            for name, (owners, _) in self._numbers.items():
                self._numbers[name] = owners, list(map(operator.itemgetter(name), owners))
        except KeyError:
            return False
        return True

    def _has_same_tensors(self) -> bool:
        """Whether each module has the same tensor objects.

        Dicts are equal if their values are the same objects; other tensors that have several elements raise. Those of
        one element are equal as objects or not at all here: their values may not be read.
        """
        if not all(map(operator.is_, starmap(operator.getitem, self._small), self._small_then)):
            return False
        try:
            return self._own == self._own_then
        except RuntimeError:
            return False

    def restore(self) -> None:
        """Put back tensors and numbers that were replaced."""
        for (own, k), then in zip(self._owners, self._tensors, strict=True):
            own[k] = then
        for name, (owners, values) in self._numbers.items():
            for own, value in zip(owners, values, strict=True):
                own[name] = value

    def host_tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that are not on a device of graphs."""
        return [t for t in self._tensors if t is not None and t.device.type == "cpu"]

    def training_modes(self) -> list[bool]:
        """Return which modules are in training mode, of those that may depend on it."""
        return list(map(_training, self._with_modes))

    def hook(self) -> str | None:
        """Say which module has a hook, or None."""
        number = RemovableHandle.next_id  # PyTorch numbers all hooks in the order of registration
        if number == self._unhooked_at:
            return None
        if any(self._hooks):
            pairs = zip(self._names, self._dicts, strict=True)
            name = next((name for name, own in pairs if any(own[k] for k in _HOOKS)), "")
            return f"a hook is registered on {name or 'the model'}; hooks are Python, which a replay does not run"
        if any(getattr(torch_module, f"_global{name}", None) for name in _HOOKS):
            return "a global module hook is registered"
        self._unhooked_at = number
        return None

    def _owner(self, name: str) -> str:
        owners, then = self._numbers[name]
        changed = next(own for own, value in zip(owners, then, strict=True) if own[name] != value)
        k = next(k for k, own in enumerate(self._dicts) if own is changed)
        return f"{self._names[k] or 'the model'} ({self._types[k].__name__})"


_training = operator.itemgetter("training")


def _numbers_of(dicts: list[dict[str, Any]]) -> dict[str, tuple[list[dict[str, Any]], list[Any]]]:
    """Return the attributes to compare by name: the modules' dicts that have one, and its values."""
    found: dict[str, tuple[list[dict[str, Any]], list[Any]]] = defaultdict(lambda: ([], []))
    for own in dicts:
        for name, value in own.items():
            if name not in _LEFT_OUT and (isinstance(value, _NUMBERS) or name == "fused_settings"):
                found[name][0].append(own)
                found[name][1].append(value)
    return dict(found)
