"""Lightning's callback ``AccelerateHRNet``, for trainers of the package ``pytorch_lightning``."""

from __future__ import annotations

from hrnet_fast.integrations.common import missing_package
from hrnet_fast.integrations.lightning_hooks import LightningHooks

try:
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.utilities import rank_zero_info
except ModuleNotFoundError as error:
    raise missing_package(__name__, "pytorch_lightning", error) from error


class AccelerateHRNet(LightningHooks, Callback):  # type: ignore[misc]
    __doc__ = LightningHooks.__doc__
    say = staticmethod(rank_zero_info)
