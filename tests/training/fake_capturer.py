"""A stand-in for CUDA's captures: a capture changes no tensor, a replay computes on the same inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils._pytree import tree_leaves


class FakeCapturer:
    """Takes part in place of ``CudaCapturer``; `watched` are what a step may change.

    Attributes:
        capturing: whether a capture is under way.
        broken: captures that still fail.
    """

    capturing = False
    broken = 0
    watched: tuple[Any, ...] = ()

    def __init__(self, device: torch.device, *_: Any) -> None:
        self.device = device

    def refusal(self) -> str | None:
        return None

    def here(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def eager(self, run: Callable[[], Any]) -> Any:
        return run()

    def capture(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        cls = type(self)
        with _unchanged(cls.watched):
            cls.capturing = True
            try:
                result = run()
                if cls.broken:
                    cls.broken -= 1
                    raise RuntimeError("the capture is broken")
            finally:
                cls.capturing = False
        parameters = [p for one in cls.watched if isinstance(one, nn.Module) for p in one.parameters()]
        gradients = [p.grad for p in parameters]
        static = [t for t in tree_leaves(result) if isinstance(t, Tensor)]

        def replay() -> None:
            before = [p.grad for p in parameters]
            for own, found in zip(static, [t for t in tree_leaves(run()) if isinstance(t, Tensor)], strict=True):
                own.copy_(found)
            for p, own, then in zip(parameters, gradients, before, strict=True):
                if own is not None:
                    assert p.grad is not None
                    own.copy_(p.grad)
                p.grad = then  # a graph knows memory only

        return replay, result

    def given(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


@contextlib.contextmanager
def _unchanged(parts: tuple[Any, ...]) -> Iterator[None]:
    found: list[Tensor] = []
    for part in parts:
        if isinstance(part, nn.Module):
            found += [*part.parameters(), *part.buffers(), *(p.grad for p in part.parameters() if p.grad is not None)]
        elif isinstance(part, optim.Optimizer):
            found += [t for own in part.state.values() for t in own.values() if isinstance(t, Tensor)]
    saved = [(t, t.detach().clone()) for t in found]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, then in saved:
                t.copy_(then)
