"""Contexts in which modules are built without initialisation: for loaded weights, or for their structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


class skip_init(TorchFunctionMode):
    """Build modules whose parameters are undefined: ``torch.nn.init`` and random draws of tensors do nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else options["tensor"]
        return func(*args, **options)


@contextmanager
def meta_device() -> Iterator[None]:
    """Build modules for their structure, keys and shapes alone: tensors made here have no memory and no values.

    Initialisation would execute in Python there: its first call imports Dynamo and SymPy, which takes over a second.
    """
    with torch.device("meta"), skip_init():
        yield
