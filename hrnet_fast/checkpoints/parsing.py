"""``parse_checkpoint``: from a file of any family to a checked state_dict under canonical names."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hrnet_fast.checkpoints.assumptions import detector_assumptions, find_assumptions
from hrnet_fast.checkpoints.channels import adapt_input
from hrnet_fast.checkpoints.comparison import check_state, expected_shapes, suspicious_values
from hrnet_fast.checkpoints.families import get_family
from hrnet_fast.checkpoints.family import Family, is_trunk
from hrnet_fast.checkpoints.files import DETECTOR_SETTINGS, read_file
from hrnet_fast.checkpoints.infer import infer_config
from hrnet_fast.checkpoints.infer_detector import detector_shapes, infer_detector
from hrnet_fast.checkpoints.mmdet_1x import upgrade_detector
from hrnet_fast.checkpoints.openseg import uses_inplace_abn
from hrnet_fast.checkpoints.partial_head import fit_head
from hrnet_fast.checkpoints.recognition import as_backbone, recognise, recognise_trunk
from hrnet_fast.checkpoints.trunk import WHOLE
from hrnet_fast.checkpoints.wrappers import absolute_scales, unwrap
from hrnet_fast.checks import check_bool, check_text
from hrnet_fast.config import HRNetConfig, check_effect
from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.errors import CheckpointError, ConfigError, InputError
from hrnet_fast.keypoints.methods import METHOD_OF_HEAD, check_method

logger = logging.getLogger("hrnet_fast.checkpoints")
Source = str | os.PathLike[str] | Mapping[str, Any]
_PYRAMID_ALONE = "family='mmdet' loads the backbone and pyramid of any detector on HRNetV2p."


@dataclass(frozen=True)
class Checkpoint:
    """A recognised and complete checkpoint.

    Attributes:
        state: the stored tensors under canonical names. The first convolution is adapted if ``in_channels`` was
            given.
        family: the format of the file.
        config: the network.
        notes: messages on entries that were left out, are missing or are ambiguous.
        keypoints: method to decode its heatmaps; None without heatmaps.
        drawn: keys of the network to initialise randomly (``head="keep"`` or ``"drop"``).
        assumptions: messages on settings that the file does not contain and that took the family's default.
        detector: the detector around the network, or None.
        has_settings: whether the file contains the detector's settings.
    """

    state: dict[str, Tensor]
    family: Family
    config: HRNetConfig
    notes: tuple[str, ...]
    keypoints: str | None = None
    drawn: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    detector: DetectorConfig | None = None
    has_settings: bool = False

    def log_notes(self) -> None:
        """Log the notes as warnings of the logger ``hrnet_fast.checkpoints``."""
        for note in self.notes:
            logger.warning("%s", note)


def parse_checkpoint(
    source: Source,
    *,
    family: str = "auto",
    part: str = WHOLE,
    head: str = "exact",
    weights: str = "auto",
    decode: str | None = None,
    torch04: bool = False,
    **overrides: Any,
) -> Checkpoint:
    """Read, recognise and strictly check a checkpoint.

    Args:
        source: a path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``) or the content of such a file.
        family: one of :data:`FAMILIES`, or ``"auto"``.
        part: ``"whole"``: trunk and head. ``"backbone"``: the HRNet trunk (stem, stages, transitions), under any
            prefix. A prefix (``"student."``): the trunk under it.
        head: ``"exact"``: the whole head must fit. ``"keep"``: layers of the head that fit are loaded, the others are
            initialised randomly. ``"drop"``: the whole head is initialised randomly.
        decode: method to decode heatmaps: ``"msra"``, ``"dark"``, ``"udp"`` or ``"face"``; None takes the family's.
        torch04: the file is of the authors' PyTorch 0.4 segmentation release, whose scales act as ``|w| + eps``.
        weights: selection if the file has trained weights and their running average (EMA, SWA): ``"raw"``, ``"ema"``,
            or ``"auto"`` for those that the file's own upstream loads; a note says which were loaded.
        overrides: fields of :class:`HRNetConfig` or :class:`HeadConfig` that the file does not contain; and
            ``in_channels``, which adapts RGB weights as timm does. For a detector, those of ``DetectorConfig.override``
            too.

    Raises:
        CheckpointError: the file is unreadable, unrecognised, incomplete or mis-shaped (its attributes list all keys),
            or lacks the requested weights.
        ConfigError: an override does not exist, does not fit, or has no effect on this network.
        InputError: `decode` is unknown, the network has no heatmaps, or an argument has a wrong type.
    """
    check_text("checkpoint", part=part, head=head, weights=weights)
    check_bool("checkpoint", torch04=torch04)
    notes: list[str] = []
    data = source if isinstance(source, Mapping) else _read_source(source)
    raw = unwrap(data, notes, weights)
    if part != WHOLE and head != "exact":
        raise ConfigError(
            f"head={head!r} applies to whole checkpoints; part={part!r} takes a trunk, which has no head."
        )
    if uses_inplace_abn(raw) and (part == WHOLE or not torch04):
        raise CheckpointError(
            "This openseg.pytorch file is normalised in place (InPlaceABN): its scales act as |w| + eps, and its heads "
            "have leaky ReLUs, which no network here has. part='backbone', torch04=True loads its trunk."
        )
    upgraded = None
    if part == WHOLE:
        if family in ("auto", "mmdet") or get_family(family).detector:
            upgraded = upgrade_detector(raw, [] if family == "mmdet" else notes)  # of which mmdet takes the pyramid
        found, named = recognise(raw if upgraded is None else upgraded, family)
        state = found.to_canonical(named, notes)
    else:
        found, state = recognise_trunk(raw, family, part, notes)
        named = state
    if torch04:
        if found.name not in ("seg", "seg_ocr") and not uses_inplace_abn(raw):
            raise CheckpointError(
                f"torch04 applies to the authors' segmentation files; this one is of family {found.name!r}."
            )
        state = absolute_scales(state)
    whole = found
    if part != WHOLE:
        found = as_backbone(found)
    defaults, detector = found.defaults_for(named, notes), None
    stored = data.get(DETECTOR_SETTINGS) if isinstance(data, Mapping) and part == WHOLE else None
    if found.detector and part == WHOLE:
        whole_network = _infer_network(state, found, defaults, {}) if stored is None else None
        given = overrides if upgraded is None else {"legacy": True} | overrides
        detector = _changed_detector(_find_detector(state, whole_network, found, stored), given)
        config, expected = detector.network, detector_shapes(detector)
    else:
        config = _infer_network(state, found, defaults, overrides)
        expected = expected_shapes(config)
    _check_decode(decode, config)
    state = adapt_input(state, config.in_channels, notes)
    state, drawn = fit_head(state, expected, head, notes)
    notes += _group_notes(config, overrides)
    if found.head_conv_bias and not config.head.conv_bias:
        notes.append(
            f"the head's convolution has no bias, which files of family {found.name!r} have; nor has the network, then"
        )
    check_state(state, expected, family=found.name, drawn=drawn, advice="" if detector is None else _PYRAMID_ALONE)
    notes += suspicious_values(state)
    whole = whole if part == WHOLE else dataclasses.replace(whole, keypoints=None)
    assumed = find_assumptions(whole, config, overrides | {"decode": decode}, named)
    if detector is not None and stored is None:
        assumed += detector_assumptions(detector, overrides)
    decoding, settings = decode or found.keypoints, detector is not None and stored is not None
    return Checkpoint(state, found, config, tuple(notes), decoding, drawn, assumed, detector, settings)


def _check_decode(decode: str | None, config: HRNetConfig) -> None:
    if decode is not None:
        check_method("load_checkpoint", decode)
        if config.head.kind not in METHOD_OF_HEAD:
            raise InputError(f"load_checkpoint: decode={decode!r} given; a {config.head.kind} head has no heatmaps.")


def _read_source(source: Any) -> Any:
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(
            f"A checkpoint is a path or a mapping; {type(source).__name__} given. For a module, pass its state_dict()."
        )
    return read_file(source)


def _infer_network(
    state: Mapping[str, Tensor], family: Family, defaults: Mapping[str, Any], overrides: Mapping[str, Any]
) -> HRNetConfig:
    shapes = {k: tuple(v.shape) for k, v in state.items() if is_trunk(k) or not family.bare}
    try:
        config = infer_config(shapes)
        if config.head.kind not in family.heads:
            raise CheckpointError(
                f"The checkpoint was read as family {family.name!r}, which holds {' or '.join(family.heads)} heads, "
                f"but its keys belong to a {config.head.kind!r} head; name another family or leave it to 'auto'."
            )
        config = config.override(**defaults)
    except ConfigError as error:
        raise CheckpointError(f"The checkpoint's shapes belong to no HRNet: {error}") from error
    changed = config.override(**overrides)
    check_effect(config, changed)
    return changed


def _group_notes(config: HRNetConfig, given: Mapping[str, Any]) -> list[str]:
    """Return notes on numbers of groups of group normalisations, which a state_dict does not contain."""
    notes = []
    if config.norm.kind == "gn" and "norm_groups" not in given:
        notes.append(
            f"group normalisation: {config.norm.groups} groups assumed; give norm_groups= if there were others"
        )
    neck = config.head.pyramid_norm
    if neck is not None and neck.kind == "gn" and "pyramid_norm" not in given:
        notes.append(f"group normalisation in the neck: {neck.groups} groups assumed; give pyramid_norm= if others")
    return notes


def _find_detector(
    state: Mapping[str, Tensor], network: HRNetConfig | None, family: Family, stored: Any
) -> DetectorConfig:
    """Return the detector of the settings in the file, or of its keys and shapes around a network."""
    if network is None:
        try:
            return DetectorConfig.from_dict(stored)
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(f"The checkpoint's {DETECTOR_SETTINGS} is no detector: {error}") from error
    try:
        return infer_detector({k: tuple(v.shape) for k, v in state.items()}, network, family.detector)
    except ConfigError as error:
        raise CheckpointError(f"The checkpoint's shapes belong to no detector: {error} {_PYRAMID_ALONE}") from error
    except CheckpointError as error:
        error.args = (f"{error} {_PYRAMID_ALONE}",)
        raise


def _changed_detector(config: DetectorConfig, overrides: Mapping[str, Any]) -> DetectorConfig:
    changed = config.override(**overrides)
    check_effect(config.network, changed.network)
    if "mask_threshold" in overrides and changed.roi is not None and changed.roi.mask is None:
        raise ConfigError("mask_threshold: given, but without effect on a detector without masks. Leave that out.")
    return changed
