"""OpenMMLab: the hook ``AccelerateHRNet`` of mmengine, and the backbone ``HRNetFast`` of mmpose, mmseg and mmdet.

``custom_imports = dict(imports=["hrnet_fast.integrations.openmmlab"])`` in a configuration registers both.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from hrnet_fast.integrations.common import TrainerAcceleration, missing_package, take_options
from hrnet_fast.training.accelerate import accelerate, explain

try:
    from mmengine.hooks import Hook
    from mmengine.logging import print_log
    from mmengine.registry import HOOKS
except ModuleNotFoundError as error:
    raise missing_package(__name__, "mmengine", error) from error

PACKAGES = ("mmpose", "mmseg", "mmdet")


@HOOKS.register_module()  # type: ignore[untyped-decorator]
class AccelerateHRNet(Hook):  # type: ignore[misc]
    """Accelerates the runner's model before its first epoch or evaluation and logs ``explain`` after the first step.

    mmengine has then built the model, converted its normalisations to SyncBN, wrapped it for parallel training and
    loaded its weights. The model's wrapper, averages (``EMAHook``) and checkpoints stay as they are.

    Args:
        options: keyword arguments of :func:`hrnet_fast.accelerate`, such as ``memory="min"``.

    Raises:
        TypeError: `accelerate` has no such option.
    """

    priority = "VERY_LOW"  # other hooks may change the model first

    def __init__(self, **options: Any) -> None:
        self._acceleration = TrainerAcceleration(options)
        self._started = False

    def before_train(self, runner: Any) -> None:
        if not self._started:  # a runner has one model
            self._acceleration.start(runner.model)
            self._started = True

    before_val = before_test = before_train

    def after_train_iter(self, runner: Any, *_args: Any, **_outputs: Any) -> None:
        report = self._acceleration.report(runner.model)
        if report is not None:
            runner.logger.info(f"accelerate: {report}")

    after_val_iter = after_test_iter = after_train_iter


def _backbone(package: str) -> Callable[..., nn.Module]:
    def build(**arguments: Any) -> nn.Module:
        options = take_options(arguments)
        network = importlib.import_module(f"{package}.models.backbones.hrnet").HRNet(**arguments)
        accelerate(network, **options)
        print_log(f"HRNetFast: {explain(network)}", logger="current", level=logging.INFO)
        return network  # type: ignore[no-any-return]

    build.__name__ = build.__qualname__ = "HRNetFast"
    build.__doc__ = f"""Return {package}'s ``HRNet``, accelerated.

    Args:
        arguments: those of that class, and keyword arguments of :func:`hrnet_fast.accelerate`.
    """
    return build


def _register() -> None:
    """Register the backbone in each package that is installed; building one imports that package's models."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            continue
        try:
            models = importlib.import_module(f"{package}.registry").MODELS
        except Exception as error:  # installed and broken, which is that package's to say where it is used
            print_log(f"HRNetFast is not registered in {package}: {error}", logger="current", level=logging.DEBUG)
            continue
        models.register_module(name="HRNetFast", module=_backbone(package), force=True)


_register()
