"""Conversion of a checkpoint to another family's names and, where they differ, layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from hrnet_fast.checkpoints.families import FAMILIES, get_family
from hrnet_fast.checkpoints.family import ANY_TRUNK, Family, is_trunk
from hrnet_fast.checkpoints.parsing import Checkpoint, Source, parse_checkpoint
from hrnet_fast.checkpoints.trunk import BACKBONE, WHOLE, top_level_names
from hrnet_fast.config import HeadConfig
from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.errors import CheckpointError
from hrnet_fast.reference import HRNetReference

IMAGENET_CLASSES = 1000


def convert_checkpoint(
    source: Source,
    to: str,
    *,
    family: str = "auto",
    part: str = BACKBONE,
    torch04: bool = False,
    weights: str = "auto",
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under another family's names.

    Between families with the same layers every tensor is copied bit for bit. If the target has no biases before the
    normalisations of its head (mmsegmentation), the source's biases are folded into ``running_mean``: the result in
    evaluation is the same, and training does not depend on them. In the opposite direction the biases are zeros. A
    note names settings that files do not contain and that the target's code sets otherwise (``align_corners``, the
    decoding of heatmaps), and those that a detector's file has beside its tensors. ``to="backbone"`` and
    ``to="mm_backbone"`` take the trunk of any checkpoint. From a classification file to ``timm_features`` the layers
    after the widening units are left out; in the opposite direction they are initialised randomly for 1000 classes,
    and a note names them.

    Args:
        source: a path or mapping.
        to: one of :data:`FAMILIES`.
        family: of the source, or ``"auto"``.
        part: with ``to="backbone"``, the prefix of one trunk if the source has several.
        torch04: see :func:`parse_checkpoint`.
        weights: see :func:`parse_checkpoint`.

    Raises:
        CheckpointError: as :func:`parse_checkpoint`, or a target that cannot hold the source's head.
    """
    state, _ = convert_with_settings(source, to, family=family, part=part, torch04=torch04, weights=weights)
    return state


def convert_with_settings(
    source: Source,
    to: str,
    *,
    family: str,
    part: str,
    torch04: bool,
    weights: str,
    room: bool = False,
) -> tuple[dict[str, Tensor], DetectorConfig | None]:
    """Return the tensors of :func:`convert_checkpoint`, and the detector's settings that the file is to have.

    Settings are those that the source contains, or that it is of mmdetection 1.x (``legacy=True``); None for others.

    Args:
        source, to, family, part, torch04, weights: see :func:`convert_checkpoint`.
        room: whether the settings will be written; a note names them otherwise.

    Raises:
        CheckpointError: as :func:`convert_checkpoint`.
    """
    target = get_family(to)
    bare = target.name in ANY_TRUNK
    if not bare and part != BACKBONE:
        raise CheckpointError(f"part={part!r} names a trunk; to={to!r} writes a whole network. Give to='backbone'.")
    part = part if bare else WHOLE
    checkpoint = parse_checkpoint(source, family=family, torch04=torch04, weights=weights, part=part)
    checkpoint = _convert_head(checkpoint, target)
    settings = checkpoint.detector if target.detector else None
    if settings is not None and not (checkpoint.has_settings or settings.legacy):
        settings = None
    notes = _unstored_settings(checkpoint, target, None if room else settings)
    checkpoint = dataclasses.replace(checkpoint, notes=(*checkpoint.notes, *notes))
    state, head = checkpoint.state, checkpoint.config.head
    held = checkpoint.family.detector
    if not (bare or _can_hold(target, head, held)):
        able = [f.name for f in FAMILIES.values() if _can_hold(f, head, held)]
        raise CheckpointError(
            f"A {checkpoint.family.name!r} checkpoint ({head.kind} head) cannot be written as "
            f"{to!r}; it can be written as {', '.join(dict.fromkeys((*able, 'backbone', 'mm_backbone')))}."
        )
    checkpoint.log_notes()
    if target.head_conv_bias is not None:
        state = _add_zero_biases(state) if target.head_conv_bias else _fold_biases(state)
    return target.from_canonical(state), settings


def _unstored_settings(checkpoint: Checkpoint, target: Family, detector: DetectorConfig | None) -> list[str]:
    """Return notes on settings that the written file does not contain and its readers set otherwise."""
    config, notes = checkpoint.config, []
    expected = target.defaults.get("align_corners", False)
    if target.name not in ANY_TRUNK and config.bilinear and config.align_corners != expected:
        notes.append(f"{target.name} interpolates with align_corners={expected}, this network with the other")
    if target.keypoints and checkpoint.keypoints and target.keypoints != checkpoint.keypoints:
        notes.append(
            f"{target.name} decodes heatmaps by {target.keypoints!r}, this network by {checkpoint.keypoints!r}"
        )
    if detector is not None:
        legacy = "legacy=True, " if detector.legacy else ""
        notes.append(
            f"{legacy}anchors, thresholds and sizes of the source are not among these tensors: write a .pth file with "
            "save_checkpoint(..., detector=load_checkpoint(source).config) or the command convert"
        )
    known = target.defaults.get("pyramid_stride", 1)
    if config.head.kind == "v2p" and config.head.pyramid_stride != known:
        notes.append(f"pyramid_stride={config.head.pyramid_stride} is not in the file written: give it when loading")
    return notes


def _can_hold(family: Family, head: HeadConfig, detector: str) -> bool:
    """Whether files of `family` can have such a head, and the detector behind it."""
    if family.detector not in ("", detector):
        return False
    if head.kind not in family.heads or family.name in ("pose_imagenet", "csail"):
        return False
    widened = family.name == "timm_features"
    same_maps = head.kind != "features" or (head.feature_location == "incre") == widened
    return same_maps and all(getattr(head, name) == value for name, value in family.always.items())


def _convert_head(checkpoint: Checkpoint, target: Family) -> Checkpoint:
    """Remove or initialise the layers after the widening units: ``cls`` has them, ``timm_features`` does not."""
    config, state = checkpoint.config, checkpoint.state
    if target.name == "timm_features" and config.head.kind == "c":
        head = HeadConfig("features", feature_location="incre")
        kept = {k: v for k, v in state.items() if is_trunk(k) or k.startswith("incre_modules.")}
        note = f"left out {top_level_names(k for k in state if k not in kept)}, which timm_features does not have"
        config, state = dataclasses.replace(config, head=head), kept
    elif target.name in ("cls", "timm") and config.head.feature_location == "incre":
        config = dataclasses.replace(config, head=HeadConfig("c", IMAGENET_CLASSES))
        whole = HRNetReference(config).state_dict()
        added = [k for k in whole if k not in state]
        note = f"drawn at random: {top_level_names(added)}, which timm_features does not have"
        state = {k: state[k] if k in state else whole[k] for k in whole}
    elif checkpoint.detector is not None and not target.detector:
        kept = {k: v for k, v in state.items() if is_trunk(k) or k.startswith("neck.")}
        note = f"left out: {top_level_names([k for k in state if k not in kept])}, which {target.name} does not have"
        state = kept
    else:
        return checkpoint
    return dataclasses.replace(checkpoint, state=state, config=config, notes=(*checkpoint.notes, note))


# Head convolutions that stand before a normalisation: (convolution, normalisation).
_BIASED = (("last_layer.0", "last_layer.1"), ("aux_head.0", "aux_head.1"), ("conv3x3_ocr.0", "conv3x3_ocr.1"))


def _fold_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold ``conv(x) + b`` before a normalisation into its mean: ``(y + b) - m = y - (m - b)``."""
    out = dict(state)
    for conv, norm in _BIASED:
        bias = out.pop(f"{conv}.bias", None)
        if bias is not None:
            if f"{norm}.running_mean" not in out:
                raise CheckpointError(
                    f"{conv}.bias has no place in the target's names, and without {norm}.running_mean (this network's "
                    "normalisation keeps no statistics) it cannot be folded away."
                )
            mean = out[f"{norm}.running_mean"]
            out[f"{norm}.running_mean"] = (mean.double() - bias.double()).to(mean.dtype)
    return out


def _add_zero_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    before = {conv for conv, _ in _BIASED}
    for key, value in state.items():
        out[key] = value
        conv = key.removesuffix(".weight")
        if conv in before and f"{conv}.bias" not in state:
            out[f"{conv}.bias"] = torch.zeros(value.shape[0], dtype=value.dtype)
    return out
