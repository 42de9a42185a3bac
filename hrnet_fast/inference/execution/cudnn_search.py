"""cuDNN's search for the fastest algorithm of a convolution, without the flag that enables it for all threads."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten: Any = torch.ops.aten
_c: Any = torch._C  # whose stubs lack names


def cudnn_search() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which cuDNN searches, unless the user asks for deterministic algorithms.

    PyTorch keeps what was found for this thread, by shapes and dtypes, and uses it whenever the same convolution comes
    again. ``torch.backends.cudnn.benchmark`` would make other threads search too: a search synchronizes the device,
    which fails during a capture and breaks it. cuDNN's convolutions with an epilogue have that flag only, and take the
    algorithm of cuDNN's heuristic unless the user sets it.
    """
    if torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic:
        return contextlib.nullcontext()
    return _CudnnSearch()  # type: ignore[no-untyped-call]


def tf32_allowed() -> bool:
    """Whether convolutions may round operands to TF32; the older flag raises where the newer one was set."""
    newer = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if newer in (None, "none") else newer == "tf32"


class _CudnnSearch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each convolution once more before itself, with a search."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.convolution.default:
            _search(*args)
        return func(*args, **(kwargs or {}))


def _search(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *rest: Any) -> None:
    backend = _c._select_conv_backend(x, weight, bias, stride, padding, *rest)
    if backend == _c._ConvBackend.Cudnn:
        layout = _c._conv_determine_backend_memory_format(x, weight, backend)
        x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
        dilation, groups = rest[0], rest[-1]
        _aten.cudnn_convolution(x, weight, padding, stride, dilation, groups, True, False, tf32_allowed())
