"""What the plug-ins share: the options of ``accelerate``, the one report of a trainer's model, absent packages."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from hrnet_fast.errors import MissingPackageError
from hrnet_fast.training.accelerate import Report, accelerate, explain


class TrainerAcceleration:
    """Accelerates a trainer's model at the moment that the plug-in chooses, and reports once, after a step.

    Some reasons for a plain forward show in a call only, so the report waits for one.

    Args:
        options: keyword arguments of :func:`hrnet_fast.accelerate`.

    Raises:
        TypeError: `accelerate` has no such option.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        check_options(options)
        self.options = options
        self._reported = True

    def start(self, model: nn.Module) -> None:
        """Accelerate `model`, wrapped for parallel training or not.

        Raises:
            InputError: it contains no HRNet, or an option has an unknown value.
            ImplementationError: an unknown implementation, or one that cannot run here.
        """
        accelerate(model, **self.options)
        self._reported = False

    def report(self, model: nn.Module) -> Report | None:
        """Return what ``explain`` says of `model`; None if it was returned since the start."""
        if self._reported:
            return None
        self._reported = True
        return explain(model)  # type: ignore[no-any-return]


def check_options(options: dict[str, Any]) -> None:
    """Check the names of keyword arguments of :func:`hrnet_fast.accelerate`.

    Raises:
        TypeError: there is none of such a name.
    """
    inspect.signature(accelerate).bind(None, **options)


def take_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the keyword arguments of :func:`hrnet_fast.accelerate` from a network's own, and return them."""
    names = [p.name for p in inspect.signature(accelerate).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {name: arguments.pop(name) for name in names if name in arguments}


def missing_package(plugin: str, package: str, error: ModuleNotFoundError) -> MissingPackageError:
    """Return the error that says what to install; `error` is that of the import, `package` a name for pip."""
    return MissingPackageError(
        f"{plugin} works with {package}, which cannot be imported ({error}): pip install {package}"
    )
