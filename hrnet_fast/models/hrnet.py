"""The public network: the reference's layers and keys, and a choice of how they execute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hrnet_fast.config import HRNetConfig
from hrnet_fast.implementations import resolve
from hrnet_fast.models.upstream_config import config_from_upstream
from hrnet_fast.reference.network import HRNetReference
from hrnet_fast.reference.norm import NormFactory


class HRNet(HRNetReference):
    """A drop-in HRNet: the authors' parameter names, any head, any width.

    Args:
        config: the network; or leave it out and give the arguments of :meth:`HRNetConfig.make` by name, for
            instance ``HRNet(width=32, head="v1", num_outputs=17)``.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        norm_layer: replaces the configured normalisation by any ``channels -> module``.

    Takes [N, in_channels, H, W] of a floating dtype and returns, by head: one tensor (``v1``, ``v1h``, ``v2``,
    ``face``: [N, num_outputs, H/4, W/4]; ``c``, ``ci``, ``cii``: [N, num_outputs]), ``[auxiliary, main]`` (``ocr``),
    a tuple of levels (``v2p``) or a list of maps (``features``).

    Raises:
        ConfigError: a network that cannot exist.
        ImplementationError: a named implementation that cannot run here.
        InputError: (from forward) an input this network cannot take.
    """

    def __init__(
        self,
        config: HRNetConfig | None = None,
        *,
        impl: str = "auto",
        norm_layer: NormFactory | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = HRNetConfig.make(**options)
        elif options:
            config = config.override(**options)
        chosen = resolve(impl)  # before any weight is drawn: a wrong name fails at once
        super().__init__(config, norm_layer)
        self.impl = chosen
        self.family: str | None = None
        self.notes: tuple[str, ...] = ()

    def set_origin(self, family: str, notes: tuple[str, ...]) -> None:
        """Record which family of checkpoints the weights came from, and what loading them left out."""
        self.family = family
        self.notes = notes

    @classmethod
    def from_config(
        cls, cfg: str | os.PathLike[str] | Mapping[str, Any], *, impl: str = "auto", **overrides: Any
    ) -> HRNet:
        """Build the network that an upstream's configuration describes.

        Args:
            cfg: the authors' yaml file or mapping (``MODEL.EXTRA``), or an mmpose / mmseg / mmdet model, backbone or
                ``extra`` mapping.
            impl: as in the class.
            overrides: fields of :class:`HRNetConfig` that are to differ.

        Raises:
            ConfigError: a mapping that describes no HRNet, or one this package cannot build.
        """
        return cls(config_from_upstream(cfg).override(**overrides), impl=impl)
