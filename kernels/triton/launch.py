"""The launch of a Triton kernel on a given device; and a mode in which launches compile instead, side by side."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import torch
import triton

_compiling: ContextVar[bool] = ContextVar("hrnet_fast_compiling", default=False)


def ceiling(size: int, block: int) -> int:
    """Return how many blocks cover `size`: ``triton.cdiv``, which serves kernels too, takes ten times as long."""
    return -(-size // block)


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **constants: Any) -> None:
    """Launch ``kernel[grid](*args, **constants)`` on the device of its tensors, where Triton takes the current one."""
    run = functools.partial(kernel.warmup, grid=grid) if _compiling.get() else kernel[grid]
    # Entering torch.cuda.device costs more than the comparison. Tensors on the CPU are for Triton's interpreter.
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        run(*args, **constants)
    else:
        with torch.cuda.device(device):
            run(*args, **constants)


class KernelCompiler(ThreadPoolExecutor):
    """Compiles kernels in threads.

    A caller waits while all threads are busy: nothing is queued, so that it can stop in time.

    Attributes:
        compiled: number of kernels that were begun.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="hrnet_fast_compiler")
        self.compiled = 0
        self._free = threading.Semaphore(threads)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._free.acquire()
        self.compiled += 1
        future = super().submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self._free.release())
        return future

    @contextlib.contextmanager
    def in_place_of_launches(self) -> Iterator[None]:
        """Let this thread's launches compile and run nothing, until the block ends and all kernels are compiled.

        An error of the compiler is raised by the first launch after that.
        """
        with self, triton.AsyncCompileMode(self, ignore_errors=True):
            token = _compiling.set(True)
            try:
                yield
            finally:
                _compiling.reset(token)
