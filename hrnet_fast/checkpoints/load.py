"""From a checkpoint to a network that computes what its upstream's does."""

from __future__ import annotations

from typing import Any

import torch

from hrnet_fast.checkpoints.convert import COUNTER, Checkpoint, Source, parse_checkpoint
from hrnet_fast.checkpoints.family import is_trunk
from hrnet_fast.errors import CheckpointError
from hrnet_fast.models.hrnet import HRNet


def load_checkpoint(
    source: Source,
    *,
    family: str = "auto",
    impl: str = "auto",
    torch04: bool = False,
    weights: str = "auto",
    **overrides: Any,
) -> HRNet:
    """Return the network of a checkpoint, with its weights, in evaluation mode.

    Family, width, depth, head and output count follow from keys and shapes; interpolation mode, ``align_corners``,
    momentum and dropout are not in a state_dict and take the family's defaults. The network returns what that
    upstream's model returns: a tensor, ``[auxiliary, main]`` for the authors' OCR, a list for features, a tuple of
    levels for a detection neck.

    Args:
        source: a path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``; read without running what they hold) or a
            mapping, wrapped (``state_dict``, ``model``, ``module.``, ``model.``, ``backbone.``) or not.
        family: one of :data:`FAMILIES`, or ``"auto"``.
        impl: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.
        torch04: see :func:`parse_checkpoint`.
        weights: ``"auto"``, ``"raw"`` or ``"ema"``; see :func:`parse_checkpoint`.
        overrides: fields of :class:`HRNetConfig` or :class:`HeadConfig`: ``align_corners=True``,
            ``upsample_to="target"``, ``out_indices=(0, 2)``, ...

    Raises:
        CheckpointError: unreadable, unrecognised, incomplete or mis-shaped; nothing is loaded in part.
        ConfigError: an override that does not exist or does not fit.
        ImplementationError: a named implementation that cannot run here.
    """
    checkpoint = parse_checkpoint(source, family=family, torch04=torch04, weights=weights, **overrides)
    checkpoint.log_notes()
    with torch.device("meta"):
        model = HRNet(checkpoint.config, impl=impl)
    model.to_empty(device="cpu")
    model.load_state_dict(_with_counters(checkpoint, model))
    model.set_origin(checkpoint.family.name, checkpoint.notes)
    return model.eval()


def _with_counters(checkpoint: Checkpoint, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    counters = {k: torch.zeros_like(v) for k, v in model.state_dict().items() if k.endswith(COUNTER)}
    return counters | checkpoint.state


def load_backbone(model: HRNet, source: Source, *, family: str = "auto", weights: str = "auto") -> HRNet:
    """Fill stem, stages and transitions of `model` from any family's checkpoint; its head keeps its weights.

    This is how a dense network starts from ImageNet weights. Rows of the last fusion that `model` does not have (the
    pose net keeps one) are left out; everything else must fit.

    Args:
        model: changed in place, and returned.
        source: a path or mapping of any family.
        family: of the source, or ``"auto"``.
        weights: ``"auto"``, ``"raw"`` or ``"ema"``; see :func:`parse_checkpoint`.

    Raises:
        CheckpointError: the trunks differ; `model` is then untouched.
    """
    checkpoint = parse_checkpoint(source, family=family, weights=weights)
    checkpoint.log_notes()
    own = {k: v for k, v in model.state_dict().items() if is_trunk(k)}
    given = {k: v for k, v in checkpoint.state.items() if is_trunk(k)}
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
            f"{len(mismatched)} mis-shaped (first: {', '.join(first)}). Take a checkpoint of the same width.",
            missing=missing,
            unexpected=extra,
            mismatched=mismatched,
        )
    model.load_state_dict({k: v for k, v in given.items() if k in own}, strict=False)
    return model
