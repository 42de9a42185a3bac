"""``load_checkpoint`` and ``load_backbone``: networks with the weights of a checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, overload

import torch

from hrnet_fast.checkpoints.channels import FIRST
from hrnet_fast.checkpoints.comparison import COUNTER
from hrnet_fast.checkpoints.family import DetectorFamily, NetworkFamily, is_trunk
from hrnet_fast.checkpoints.parsing import Source, parse_checkpoint
from hrnet_fast.checkpoints.trunk import BACKBONE, WHOLE
from hrnet_fast.checks import check_module
from hrnet_fast.detection.detector import Detector
from hrnet_fast.errors import CheckpointError, InputError
from hrnet_fast.models.hrnet import HRNet
from hrnet_fast.reference import HRNetReference
from hrnet_fast.skip_init import skip_init


@overload
def load_checkpoint(
    source: Source,
    *,
    family: DetectorFamily,
    part: Literal["whole"] = ...,
    head: str = ...,
    weights: str = ...,
    decode: str | None = ...,
    impl: str = ...,
    torch04: bool = ...,
    **overrides: Any,
) -> Detector: ...
@overload
def load_checkpoint(
    source: Source,
    *,
    family: NetworkFamily,
    part: str = ...,
    head: str = ...,
    weights: str = ...,
    decode: str | None = ...,
    impl: str = ...,
    torch04: bool = ...,
    **overrides: Any,
) -> HRNet: ...
@overload
def load_checkpoint(
    source: Source,
    *,
    family: str = ...,
    part: Literal["backbone"],
    head: str = ...,
    weights: str = ...,
    decode: str | None = ...,
    impl: str = ...,
    torch04: bool = ...,
    **overrides: Any,
) -> HRNet: ...
@overload
def load_checkpoint(
    source: Source,
    *,
    family: str = ...,
    part: str = ...,
    head: str = ...,
    weights: str = ...,
    decode: str | None = ...,
    impl: str = ...,
    torch04: bool = ...,
    **overrides: Any,
) -> HRNet | Detector: ...
def load_checkpoint(
    source: Source,
    *,
    family: str = "auto",
    part: str = WHOLE,
    head: str = "exact",
    weights: str = "auto",
    decode: str | None = None,
    impl: str = "auto",
    torch04: bool = False,
    **overrides: Any,
) -> HRNet | Detector:
    """Return the network of a checkpoint, with its weights, in evaluation mode: an ``HRNet``, or a ``Detector``.

    Type checkers know which of both for a `family` that is named, and for ``part="backbone"``.

    Family, width, depth, head and output count are inferred from keys and shapes. Interpolation mode,
    ``align_corners``, momentum and dropout are not in a state_dict and take the family's defaults.
    ``model.assumptions`` lists the defaults that change results and of which files of the family have two variants.
    The output has the upstream's structure: a tensor, ``[auxiliary, main]`` for the authors' OCR, a list for features,
    a tuple of levels for a detection neck, and boxes, scores, labels and masks for a detector
    (:class:`hrnet_fast.detection.Detector`; ``family="mmdet"`` loads its backbone and neck alone).

    Args:
        source: a path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``; read without running their code) or a
            mapping, wrapped (``state_dict``, ``model``, ``module.``, ``model.``, ``backbone.``) or not.
        family: one of :data:`FAMILIES`, or ``"auto"``.
        part: ``"whole"``; ``"backbone"`` for the HRNet trunk under any prefix (``net.``, ``encoder.model.``,
            ``student.``), whose network returns a list of branches; or the prefix of one of several trunks.
        head: ``"exact"``; ``"keep"`` loads the layers of the head that fit and initialises the others randomly, for
            another ``num_outputs=``; ``"drop"`` initialises the whole head.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        torch04: see :func:`parse_checkpoint`.
        decode: method to decode heatmaps: ``"msra"``, ``"dark"``, ``"udp"`` or ``"face"``; None takes the family's. It
            becomes the network's ``keypoints``.
        weights: ``"auto"``, ``"raw"`` or ``"ema"``; see :func:`parse_checkpoint`.
        overrides: fields of :class:`HRNetConfig` or :class:`HeadConfig`: ``align_corners=True``,
            ``upsample_to="target"``, ``out_indices=(0, 2)``, ``num_outputs=5``, ... ``in_channels``
            adapts RGB weights as timm does: summed for one channel, repeated and scaled by 3 / in_channels for others.
            A detector also takes those of ``DetectorConfig.override``: ``score_threshold=0.3``, ``short_side=600``.

    Raises:
        CheckpointError: the file is unreadable, unrecognised, incomplete or mis-shaped; nothing is loaded then.
        ConfigError: an override does not exist or does not fit.
        ImplementationError: the named implementation cannot run here.
        InputError: `decode` is unknown, or the network has no heatmaps.
        MissingPackageError: a detector without torchvision.
    """
    checkpoint = parse_checkpoint(
        source, family=family, part=part, head=head, weights=weights, decode=decode, torch04=torch04, **overrides
    )
    checkpoint.log_notes()
    # Initialising weights that are all replaced would take seconds.
    with torch.device("cpu"), nullcontext() if checkpoint.drawn else skip_init():
        if checkpoint.detector is not None:
            model: HRNet | Detector = Detector(checkpoint.detector, impl=impl)
        else:
            model = HRNet(checkpoint.config, impl=impl)
    name = checkpoint.family.from_canonical if isinstance(model, Detector) else dict
    wanted = name({k: torch.empty(0) for k in checkpoint.drawn})
    drawn = {k: v for k, v in model.state_dict().items() if k in wanted}
    counters = {k: torch.zeros_like(v) for k, v in model.state_dict().items() if k.endswith(COUNTER)}
    model.load_state_dict(drawn | counters | name(checkpoint.state))
    model.set_origin(checkpoint.family.name, checkpoint.notes, checkpoint.assumptions, checkpoint.keypoints)
    return model.eval()


def load_backbone(
    model: HRNet,
    source: Source,
    *,
    family: str = "auto",
    part: str = BACKBONE,
    weights: str = "auto",
    in_channels: int | None = None,
) -> HRNet:
    """Load stem, stages and transitions of `model` from any checkpoint with an HRNet; the head keeps its weights.

    It initialises a dense network from ImageNet weights. Outputs of the last fusion that `model` does not have (the
    pose net has one) are left out, and so are entries beside the trunk. All other entries must fit.

    Args:
        model: changed in place, and returned.
        source: a path or mapping with an HRNet trunk, under any prefix.
        family: of the source, or ``"auto"``.
        part: the prefix of one trunk if the source has several.
        weights: ``"auto"``, ``"raw"`` or ``"ema"``; see :func:`parse_checkpoint`.
        in_channels: adapt RGB weights to this many input channels, as :func:`load_checkpoint` does; None leaves them.

    Raises:
        CheckpointError: the source has no trunk, several, or one that differs; `model` is unchanged then.
        InputError: `model` is no network of this package.
    """
    check_module("load_backbone", model)
    if not isinstance(model, HRNetReference):
        raise InputError(
            f"load_backbone: {type(model).__name__} given; accepted is a network of this package. For others use "
            "convert_checkpoint(source, to='backbone') and its load_state_dict."
        )
    if part == WHOLE:
        raise CheckpointError(f"load_backbone takes a trunk: part={BACKBONE!r}, or the prefix of one of several.")
    overrides: dict[str, Any] = {} if in_channels is None else {"in_channels": in_channels}
    checkpoint = parse_checkpoint(source, family=family, part=part, weights=weights, **overrides)
    checkpoint.log_notes()
    own = {k: v for k, v in model.state_dict().items() if is_trunk(k)}
    given = checkpoint.state
    stages = len(model.config.stages)
    last_fusion = f"stage{stages}.{model.config.stages[-1].num_modules - 1}.fuse_layers."
    extra = tuple(k for k in given if k not in own and not k.startswith(last_fusion))
    missing = tuple(k for k in own if k not in given and not k.endswith(COUNTER))
    mismatched = tuple(
        (k, tuple(given[k].shape), tuple(v.shape)) for k, v in own.items() if k in given and given[k].shape != v.shape
    )
    if extra or missing or mismatched:
        first = (*missing, *extra, *(k for k, _, _ in mismatched))[:5]
        raise CheckpointError(
            f"The trunk of this checkpoint is not the model's: {len(missing)} keys missing, {len(extra)} unexpected, "
            f"{len(mismatched)} mis-shaped (first: {', '.join(first)}). {_advice(mismatched)}",
            missing=missing,
            unexpected=extra,
            mismatched=mismatched,
        )
    model.load_state_dict({k: v for k, v in given.items() if k in own}, strict=False)
    model.notes = (*model.notes, *checkpoint.notes)
    return model


def _advice(mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]) -> str:
    channels = [own[1] for key, _, own in mismatched if key == FIRST]
    if len(mismatched) == 1 and channels:
        return f"Input channels differ: give in_channels={channels[0]} to have the weights adapted."
    return "Take a checkpoint of the same width."
