"""Lightning's callback ``AccelerateHRNet``, for trainers of the package ``lightning``."""

from __future__ import annotations

from hrnet_fast.integrations.common import missing_package
from hrnet_fast.integrations.lightning_hooks import LightningHooks

try:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise missing_package(__name__, "lightning", error) from error


class AccelerateHRNet(LightningHooks, Callback):  # type: ignore[misc]
    __doc__ = LightningHooks.__doc__
    say = staticmethod(rank_zero_info)
