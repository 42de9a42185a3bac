"""Runs a training script, unedited, in whose process every HRNet is accelerated: ``hrnet-fast launch``."""

from __future__ import annotations

import multiprocessing.process
import os
import runpy
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hrnet_fast.errors import InputError
from hrnet_fast.integrations import legacy
from hrnet_fast.training.accelerate import accelerate, explain, is_fusion
from hrnet_fast.training.matching import hooked, looks_like_unit


def say(text: str) -> None:
    """Print on standard error, in the first of the processes that train together."""
    rank = str(distributed.get_rank()) if distributed.is_initialized() else os.environ.get("RANK", "0")
    if rank == "0":
        print(f"hrnet-fast launch: {text}", file=sys.stderr, flush=True)


class ScriptAcceleration:
    """Accelerates the HRNets of a process where its code moves, wraps or switches them.

    While it is :meth:`active`, ``Module.to``, ``cuda`` and ``train`` (which ``eval`` calls) accelerate before they run,
    as ``DataParallel``, ``DistributedDataParallel`` and a module's call do, the latter until the first network was
    found. Blocks are thus compared with their fused form where they were built, mostly on the CPU. Processes that
    ``multiprocessing`` starts do the same.

    Args:
        options: keyword arguments of :func:`hrnet_fast.accelerate`.
        old_names: supply the names that newer numpy and scipy lack: see :mod:`hrnet_fast.integrations.legacy`.
    """

    def __init__(self, options: dict[str, Any], old_names: bool = False) -> None:
        self.options = options
        self.old_names = old_names
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # all modules of accelerated networks
        self._networks: list[tuple[weakref.ref[nn.Module], str]] = []  # with what was said of each
        self._busy = False
        self._undo: list[Callable[[], None]] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Accelerate while the block runs; afterwards say what changed since, or that nothing was found."""
        self._install()
        try:
            yield
        finally:
            while self._undo:
                self._undo.pop()()
            self._say_the_rest()

    def examine(self, model: nn.Module) -> None:
        """Accelerate `model` if it has an HRNet's blocks that are not accelerated yet."""
        if self._busy or not isinstance(model, nn.Module):
            return
        new = [m for m in model.modules() if m not in self._known and (is_fusion(m) or looks_like_unit(m))]
        if not new or not any(is_fusion(m) for m in model.modules()):
            return
        self._busy = True
        try:
            accelerate(model, **self.options)
        finally:
            self._busy = False
        self._known.update(model.modules())
        text = _describe(model)
        if all(text != known for _, known in self._networks):
            say(text)
        self._networks.append((weakref.ref(model), text))

    def _say_the_rest(self) -> None:
        if not self._networks:
            say("no HRNet was accelerated: none was moved, wrapped, switched or called.")
        for network, text in self._networks:
            model = network()
            now = model and _describe(model)
            if now not in (None, text):  # a reason that only a call shows
                say(f"at the end, {now}")

    def _install(self) -> None:
        if self.old_names:
            self._undo.append(legacy.supply(say))
        for name in ("to", "cuda", "train"):
            self._replace(nn.Module, name, self._examine_first)
        for wrapper in (DataParallel, DistributedDataParallel):
            self._replace(wrapper, "__init__", self._before_wrapping)
        self._replace(nn.Module, "__call__", self._before_the_first_call)
        self._replace(multiprocessing.process.BaseProcess, "__init__", self._in_child)

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, make(original))
        self._undo.append(lambda: setattr(owner, name, original))

    def _examine_first(self, original: Any) -> Any:
        def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return original(module, *args, **kwargs)
            self.examine(module)
            self._busy = True  # train() calls itself on every child
            try:
                return original(module, *args, **kwargs)
            finally:
                self._busy = False

        return method

    def _before_wrapping(self, original: Any) -> Any:
        def method(wrapper: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
            self.examine(module)
            original(wrapper, module, *args, **kwargs)

        return method

    def _before_the_first_call(self, original: Any) -> Any:
        depth = 0

        def method(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if depth == 0 and not self._busy and not _is_observed(module):
                self.examine(module)
                if self._networks:  # from here on calls cost nothing
                    nn.Module.__call__ = original  # type: ignore[method-assign]
                    return original(module, *args, **kwargs)
            depth += 1
            try:
                return original(module, *args, **kwargs)
            finally:
                depth -= 1

        return method

    def _in_child(self, original: Any) -> Any:
        def method(process: Any, *args: Any, **kwargs: Any) -> None:
            original(process, *args, **kwargs)
            if process._target is not None:
                process._target = _Child(self.options, self.old_names, process._target)

        return method


def _is_observed(module: nn.Module) -> bool:
    """Whether this call only looks at the network: a trace, or hooks, which keep blocks from being fused."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or hooked(list(module.modules())) is not None
    )


def _describe(model: nn.Module) -> str:
    try:
        return f"{type(model).__name__}: {explain(model)}"
    except InputError:
        return f"{type(model).__name__}: no longer accelerated"


class _Child:
    """What a started process runs. One that was not forked imports everything anew and has nothing replaced."""

    def __init__(self, options: dict[str, Any], old_names: bool, target: Callable[..., Any]) -> None:
        self.options = options
        self.old_names = old_names
        self.target = target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if nn.Module.to.__module__ == __name__:  # forked: replaced already
            return self.target(*args, **kwargs)
        ScriptAcceleration(self.options, self.old_names)._install()
        return self.target(*args, **kwargs)


def run_script(script: str, arguments: tuple[str, ...], as_module: bool, acceleration: ScriptAcceleration) -> None:
    """Run a file, or with `as_module` a module, as Python does: ``__main__``, ``sys.argv``, ``sys.path[0]``.

    Exceptions are the script's own; a traceback that reaches the interpreter begins in the script.
    """
    sys.argv = [script, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd() if as_module else str(Path(script).resolve().parent)
    hook = sys.excepthook

    def excepthook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        trace = _without_our_frames(trace)
        hook(kind, value.with_traceback(trace), trace)

    sys.excepthook = excepthook
    with acceleration.active():
        if as_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    """Drop the frames up to :func:`run_script` and ``runpy``'s behind it; a trace without it stays whole."""
    entry, inside = trace, False
    while entry is not None:
        ours = entry.tb_frame.f_code is run_script.__code__
        if inside and not ours and entry.tb_frame.f_globals.get("__name__") != "runpy":
            return entry
        entry, inside = entry.tb_next, inside or ours
    return trace
