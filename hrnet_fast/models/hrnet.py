"""The public network: the reference's layers and keys, accelerated unless ``impl="reference"``."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from hrnet_fast.config import HRNetConfig
from hrnet_fast.errors import ConfigError, shown
from hrnet_fast.implementations import resolve
from hrnet_fast.keypoints.methods import METHOD_OF_HEAD, NO_HEATMAPS
from hrnet_fast.models.torchvision_backbone import TorchvisionBackbone
from hrnet_fast.models.upstream import Source, read_configuration
from hrnet_fast.reference.hrnet import HRNetReference
from hrnet_fast.reference.norm import NormFactory
from hrnet_fast.training.accelerate import accelerate_blocks, apply_settings
from hrnet_fast.training.fused_modules import FusedModule

logger = logging.getLogger("hrnet_fast.models")


class HRNet(HRNetReference):
    """A drop-in HRNet: the authors' parameter names, any head, any width.

    Args:
        config: the network; or leave it out and give the arguments of :meth:`HRNetConfig.make` by name, for
            instance ``HRNet(width=32, head="v1", num_outputs=17)``.
        impl: ``"auto"``, ``"reference"`` (plain PyTorch), ``"cpu"``, ``"triton"`` or ``"cuda"``: for all but the
            reference, the network is passed through :func:`hrnet_fast.accelerate`; ``hrnet_fast.restore`` undoes that.
        norm_layer: replaces the configured normalisation by any ``channels -> module``.

    Takes [N, in_channels, H, W] of a floating dtype and returns, by head: one tensor (``v1``, ``v1h``, ``v2``,
    ``face``: [N, num_outputs, H/4, W/4]; ``c``, ``ci``, ``cii``: [N, num_outputs]), ``[auxiliary, main]`` (``ocr``),
    a tuple of levels (``v2p``), a list of heatmaps at 1/4, 1/2, ... (``higher``) or a list of maps (``features``).

    Raises:
        ConfigError: a network that cannot exist.
        ImplementationError: a named implementation that cannot run here.
        InputError: (from forward) an input this network cannot take.
    """

    # What heatmaps' pixels stand for (`hrnet_fast.keypoints.METHODS`): the family's or the head's convention, and yours
    # to set; "none" where the head's maps are no heatmaps; None where it has none, or that is not known.
    keypoints: str | None

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
        elif not isinstance(config, HRNetConfig):
            raise ConfigError(
                f"HRNet: config is {shown(config)}; accepted is an HRNetConfig. HRNet.from_config takes upstreams' "
                "files and mappings, create_model takes names."
            )
        elif options:
            config = config.override(**options)
        if norm_layer is not None and (isinstance(norm_layer, nn.Module) or not callable(norm_layer)):
            raise ConfigError(f"HRNet: norm_layer is {shown(norm_layer)}; accepted is a callable, channels -> module.")
        chosen = resolve(impl)  # before any weight is drawn: a wrong name fails at once
        super().__init__(config, norm_layer)
        self.impl = chosen
        if chosen != "reference":
            accelerate_blocks(self, impl, "lean")
        self.family: str | None = None
        self.keypoints = METHOD_OF_HEAD.get(config.head.kind)
        self.notes: tuple[str, ...] = ()
        self.assumptions: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        settings = next((m.fused_settings for m in self.modules() if isinstance(m, FusedModule)), None)
        return {**vars(self), "_settings_of_pickle": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Accelerate a network that is read from a pickle, as it was when it was written."""
        state = dict(state)
        settings = state.pop("_settings_of_pickle", None)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if settings is not None and not any(isinstance(m, FusedModule) for m in self.modules()):
            apply_settings(self, settings)

    def set_origin(
        self, family: str, notes: tuple[str, ...], assumptions: tuple[str, ...] = (), keypoints: str | None = None
    ) -> None:
        """Record which family the weights came from, what loading left out and assumed, and how heatmaps decode."""
        self.family = family
        self.keypoints = keypoints or self.keypoints
        self.notes = notes
        self.assumptions = assumptions

    def as_torchvision_backbone(self) -> TorchvisionBackbone:
        """Return a module around this network that torchvision's detectors take as their backbone.

        It returns the pyramid's levels as an OrderedDict under ``"0"``, ``"1"``, ..., and has ``out_channels``:
        ``FasterRCNN(model.as_torchvision_backbone(), num_classes=91)``. This network is its ``body``, accelerated or
        not, with its own keys and parameters. torchvision is not imported.

        Raises:
            ConfigError: the head is no ``"v2p"``, the only one that gives a pyramid.
        """
        return TorchvisionBackbone(self)

    @classmethod
    def from_config(
        cls, cfg: Source, *, impl: str = "auto", upstream: str | None = None, part: str = "all", **overrides: Any
    ) -> HRNet:
        """Build the network that an upstream's configuration describes.

        Args:
            cfg: the authors' ``.yaml`` file or its content (``MODEL``), OpenMMLab's ``.py`` file (read by mmengine), an
                mmengine ``Config``, or an mmpose / mmseg / mmdet model, backbone or ``extra`` mapping.
            impl: as in the class.
            upstream: whose HRNet a mapping of OpenMMLab's is, ``"mmpose"``, ``"mmseg"`` or ``"mmdet"``; ``None`` finds
                out by scopes, heads and keys. A bare backbone may have none of these: :attr:`notes` then says what was
                assumed.
            part: ``"all"``, or ``"backbone"``: the branches that the backbone returns, whatever follows it.
            overrides: fields of :class:`HRNetConfig` that are to differ.

        :attr:`keypoints` is how the upstream decodes the heatmaps: mmpose's ``decoder`` (1.x) or ``test_cfg`` (0.x),
        and the authors' pose or facial-landmark code. What was assumed or left out is in :attr:`notes`, and is
        logged (``hrnet_fast.models``).

        Raises:
            ConfigError: a configuration that describes no HRNet, a setting that this package cannot build, a key that
                it does not know, or a ``.py`` file without mmengine.
        """
        found = read_configuration(cfg, upstream=upstream, part=part)
        model = cls(found.config.override(**overrides), impl=impl)
        model.notes = found.notes
        if model.config.head.kind == found.config.head.kind:  # else of the head that was asked for instead
            segmentation = found.config.head.kind in ("v2", "ocr")
            model.keypoints = found.keypoints or (NO_HEATMAPS if segmentation else None)
        for note in found.notes:
            logger.warning("%s", note)
        return model
