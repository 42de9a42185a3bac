"""From a file of any family to the canonical state_dict, checked whole, and from there to any other family."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints.family import Family, is_trunk
from hrnet_fast.checkpoints.files import read_file
from hrnet_fast.checkpoints.infer import infer_config
from hrnet_fast.checkpoints.registry import detect_family, get_family
from hrnet_fast.checkpoints.wrappers import absolute_scales, unwrap
from hrnet_fast.config import HRNetConfig
from hrnet_fast.errors import CheckpointError, ConfigError
from hrnet_fast.reference import HRNetReference

COUNTER = "num_batches_tracked"
logger = logging.getLogger("hrnet_fast.checkpoints")
Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, recognised and complete.

    Attributes:
        state: tensors under the authors' names, as they were stored (none added, none changed).
        family: where it came from.
        config: the network it belongs to.
        notes: what was left out, is lacking or could not be told, for people.
    """

    state: dict[str, Tensor]
    family: Family
    config: HRNetConfig
    notes: tuple[str, ...]

    def log_notes(self) -> None:
        """Tell what was left out or assumed, as warnings of the logger ``hrnet_fast.checkpoints``."""
        for note in self.notes:
            logger.warning("%s", note)


def parse_checkpoint(source: Source, *, family: str = "auto", torch04: bool = False, **overrides: Any) -> Checkpoint:
    """Read, recognise and strictly check a checkpoint.

    Args:
        source: a path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``) or what such a file holds.
        family: one of :data:`FAMILIES`, or ``"auto"``.
        torch04: the file is of the authors' PyTorch 0.4 segmentation release, whose scales act as ``|w| + eps``.
        overrides: fields of :class:`HRNetConfig` or :class:`HeadConfig` that the file does not tell.

    Raises:
        CheckpointError: unreadable, unrecognised, incomplete or mis-shaped; the keys are in the message and, all of
            them, in its attributes.
        ConfigError: an override that does not exist or does not fit.
    """
    notes: list[str] = []
    data = source if isinstance(source, Mapping) else _read(source)
    raw = unwrap(data, notes)
    found = detect_family(raw) if family == "auto" else get_family(family)
    state = found.to_canonical(raw, notes)
    if torch04:
        if found.name not in ("seg", "seg_ocr"):
            raise CheckpointError(
                f"torch04 applies to the authors' segmentation files; this one is of family {found.name!r}."
            )
        state = absolute_scales(state)
    config = _infer(state, found, found.told_by(raw, notes), overrides)
    if config.norm.kind == "gn" and "norm_groups" not in overrides:
        notes.append(
            f"group normalisation: {config.norm.groups} groups assumed; give norm_groups= if there were others"
        )
    neck = config.head.pyramid_norm
    if neck is not None and neck.kind == "gn" and "pyramid_norm" not in overrides:
        notes.append(f"group normalisation in the neck: {neck.groups} groups assumed; give pyramid_norm= if others")
    if found.head_conv_bias and not config.head.conv_bias:
        notes.append(
            f"the head's convolution has no bias, which files of family {found.name!r} have; nor has the network, then"
        )
    check_state(state, config, family=found.name)
    return Checkpoint(state, found, config, tuple(notes))


def _read(source: Any) -> Any:
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(
            f"A checkpoint is a path or a mapping; {type(source).__name__} given. For a module, pass its state_dict()."
        )
    return read_file(source)


def _infer(
    state: Mapping[str, Tensor], family: Family, defaults: Mapping[str, Any], overrides: Mapping[str, Any]
) -> HRNetConfig:
    shapes = {k: tuple(v.shape) for k, v in state.items()}
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
    return config.override(**overrides)


def expected_shapes(config: HRNetConfig) -> dict[str, tuple[int, ...]]:
    """Return the canonical keys and shapes of a network, without allocating it."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in HRNetReference(config).state_dict().items()}


def check_state(state: Mapping[str, Tensor], config: HRNetConfig, *, family: str) -> None:
    """Compare a canonical state_dict with the network it is to fill.

    Batch counters may be absent altogether (files older than PyTorch 0.4.1 have none).

    Raises:
        CheckpointError: anything missing, unexpected or mis-shaped.
    """
    odd = tuple(k for k, v in state.items() if not k.endswith(COUNTER) and not _is_weight(v))
    if odd:
        raise CheckpointError(
            f"{len(odd)} entries are no dense floating tensors (quantised, sparse or meta?): {', '.join(odd[:6])}. "
            "Convert them to floating point first; tensors on the meta device have no values to load.",
            unexpected=odd,
        )
    expected = expected_shapes(config)
    no_counters = not any(k.endswith(COUNTER) for k in state)
    missing = tuple(k for k in expected if k not in state and not (no_counters and k.endswith(COUNTER)))
    unexpected = tuple(k for k in state if k not in expected)
    mismatched = tuple(
        (k, tuple(state[k].shape), shape) for k, shape in expected.items() if k in state and state[k].shape != shape
    )
    if not (missing or unexpected or mismatched):
        return
    lines = [f"The checkpoint (read as family {family!r}) does not fit the network that its keys describe."]
    lines += _listed("missing", missing)
    lines += _listed("unexpected", unexpected)
    lines += _listed("mis-shaped", tuple(f"{k}: {list(a)} given, {list(b)} needed" for k, a, b in mismatched))
    lines.append(
        "Nothing was loaded. Fetch a complete file, or drop entries that are not HRNet's and pass the mapping."
    )
    raise CheckpointError("\n".join(lines), missing=missing, unexpected=unexpected, mismatched=mismatched)


def _is_weight(tensor: Tensor) -> bool:
    dense = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)
    return dense and tensor.is_floating_point()


def _listed(what: str, names: tuple[str, ...], most: int = 10) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return [f"  {what} ({len(names)}): {', '.join(names[:most])}{more}"]


def convert_checkpoint(source: Source, to: str, *, family: str = "auto", torch04: bool = False) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under another family's names.

    Within one family, and between families of the same layers, every tensor is handed over bit for bit. Where the
    target has no biases before its head's normalisations (mmsegmentation), the authors' fold into ``running_mean``
    (the network computes the same in evaluation; in training those biases never mattered); the other way they are
    zeros. ``to="backbone"`` and ``to="mm_backbone"`` take the trunk of any family.

    Args:
        source: a path or mapping.
        to: one of :data:`FAMILIES`.
        family: of the source, or ``"auto"``.
        torch04: see :func:`parse_checkpoint`.

    Raises:
        CheckpointError: as :func:`parse_checkpoint`, or a target that cannot hold the source's head.
    """
    target = get_family(to)
    checkpoint = parse_checkpoint(source, family=family, torch04=torch04)
    checkpoint.log_notes()
    state = checkpoint.state
    if target.name in ("backbone", "mm_backbone"):
        return target.from_canonical({k: v for k, v in state.items() if is_trunk(k)})
    if checkpoint.config.head.kind not in target.heads or target.name == "pose_imagenet":
        able = [f.name for f in _targets(checkpoint.config.head.kind)]
        raise CheckpointError(
            f"A {checkpoint.family.name!r} checkpoint ({checkpoint.config.head.kind} head) cannot be written as "
            f"{to!r}; it can be written as {', '.join(dict.fromkeys((*able, 'backbone', 'mm_backbone')))}."
        )
    if target.head_conv_bias is None:
        return target.from_canonical(state)
    return target.from_canonical(_with_biases(state) if target.head_conv_bias else _without_biases(state))


def _targets(head: str) -> list[Family]:
    from hrnet_fast.checkpoints.registry import FAMILIES

    return [f for f in FAMILIES.values() if head in f.heads and f.name != "pose_imagenet"]


# Head convolutions that stand before a normalisation: (convolution, normalisation).
_BIASED = (("last_layer.0", "last_layer.1"), ("aux_head.0", "aux_head.1"), ("conv3x3_ocr.0", "conv3x3_ocr.1"))


def _without_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _with_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    before = {conv for conv, _ in _BIASED}
    for key, value in state.items():
        out[key] = value
        conv = key.removesuffix(".weight")
        if conv in before and f"{conv}.bias" not in state:
            out[f"{conv}.bias"] = torch.zeros(value.shape[0], dtype=value.dtype)
    return out
