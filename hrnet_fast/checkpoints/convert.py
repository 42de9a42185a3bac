"""From a file of any family to the canonical state_dict, checked whole, and from there to any other family."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints.assumptions import assumptions
from hrnet_fast.checkpoints.channels import adapt_input
from hrnet_fast.checkpoints.family import Family, is_trunk
from hrnet_fast.checkpoints.files import read_file
from hrnet_fast.checkpoints.heads import fit_head
from hrnet_fast.checkpoints.infer import infer_config
from hrnet_fast.checkpoints.openseg import uses_inplace_abn
from hrnet_fast.checkpoints.registry import FAMILIES, detect_family, get_family
from hrnet_fast.checkpoints.trunk import BACKBONE, WHOLE, find_trunk, no_trunk, shown_tops, trunk_prefixes
from hrnet_fast.checkpoints.wrappers import absolute_scales, unwrap
from hrnet_fast.config import HeadConfig, HRNetConfig
from hrnet_fast.errors import CheckpointError, ConfigError, InputError
from hrnet_fast.keypoints.methods import METHOD_OF_HEAD, check_method
from hrnet_fast.reference import HRNetReference

COUNTER = "num_batches_tracked"
IMAGENET_CLASSES = 1000
SHARED = "values in the memory of another layer"
logger = logging.getLogger("hrnet_fast.checkpoints")
Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, recognised and complete.

    Attributes:
        state: tensors under the authors' names, as they were stored (none added; the first convolution is changed
            where other input channels were asked for).
        family: where it came from.
        config: the network it belongs to.
        notes: what was left out, is lacking or could not be told, for people.
        keypoints: how its heatmaps decode; None where it has none.
        drawn: keys of the network that are to be drawn at random (``head="keep"`` or ``"drop"``).
        assumptions: what the file does not tell and a default of its family decided, though it changes numbers.
    """

    state: dict[str, Tensor]
    family: Family
    config: HRNetConfig
    notes: tuple[str, ...]
    keypoints: str | None = None
    drawn: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    def log_notes(self) -> None:
        """Tell what was left out or assumed, as warnings of the logger ``hrnet_fast.checkpoints``."""
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
        source: a path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``) or what such a file holds.
        family: one of :data:`FAMILIES`, or ``"auto"``.
        part: ``"whole"``: trunk and head. ``"backbone"``: the one HRNet trunk (stem, stages, transitions) that stands
            in the checkpoint, under whatever prefix and beside whatever else. A prefix (``"student."``): that trunk.
        head: ``"exact"``: all of the head must fit. ``"keep"``: layers of the head that fit are taken, the others are
            drawn at random. ``"drop"``: the whole head is.
        decode: how its heatmaps decode: ``"msra"``, ``"dark"``, ``"udp"`` or ``"face"``; None is the family's.
        torch04: the file is of the authors' PyTorch 0.4 segmentation release, whose scales act as ``|w| + eps``.
        weights: which, where the file holds trained weights and their running average (EMA, SWA): ``"raw"``, ``"ema"``,
            or ``"auto"`` for those that the file's own upstream loads; a note says which were taken.
        overrides: fields of :class:`HRNetConfig` or :class:`HeadConfig` that the file does not tell; and
            ``in_channels``, to which RGB weights are adapted as timm adapts them.

    Raises:
        CheckpointError: unreadable, unrecognised, incomplete or mis-shaped (the keys are in the message and, all of
            them, in its attributes), or without the weights asked for.
        ConfigError: an override that does not exist or does not fit.
    """
    notes: list[str] = []
    data = source if isinstance(source, Mapping) else _read(source)
    raw = unwrap(data, notes, weights)
    if "backbone." in trunk_prefixes(raw) and uses_inplace_abn(raw) and (part == WHOLE or not torch04):
        raise CheckpointError(
            "This openseg.pytorch file is normalised in place (InPlaceABN): its scales act as |w| + eps, and its heads "
            "have leaky ReLUs, which no network here has. part='backbone', torch04=True loads its trunk."
        )
    if part == WHOLE:
        found, named = _recognise(raw, family)
        state = found.to_canonical(named, notes)
    else:
        found, state = _trunk(raw, family, part, notes)
    if torch04:
        if found.name not in ("seg", "seg_ocr") and not uses_inplace_abn(raw):
            raise CheckpointError(
                f"torch04 applies to the authors' segmentation files; this one is of family {found.name!r}."
            )
        state = absolute_scales(state)
    given = overrides | {"decode": decode}
    if part != WHOLE:
        given |= {} if found.bare else {"upsample": "the family's"}
        found = _as_backbone(found)
    config = _infer(state, found, found.told_by(raw, notes), overrides)
    _check_decode(decode, config)
    state = adapt_input(state, config.in_channels, notes)
    state, drawn = fit_head(state, expected_shapes(config), head, notes)
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
    check_state(state, config, family=found.name, drawn=drawn)
    notes += _odd_values(state)
    assumed = assumptions(found, config, given)
    return Checkpoint(state, found, config, tuple(notes), decode or found.keypoints, drawn, assumed)


def _check_decode(decode: str | None, config: HRNetConfig) -> None:
    if decode is not None:
        check_method("load_checkpoint", decode)
        if config.head.kind not in METHOD_OF_HEAD:
            raise InputError(f"load_checkpoint: decode={decode!r} given; a {config.head.kind} head has no heatmaps.")


def _recognise(raw: dict[str, Tensor], family: str) -> tuple[Family, dict[str, Tensor]]:
    """Return the family of a whole checkpoint, and its keys without a prefix that all of them share.

    Raises:
        CheckpointError: no family has such keys; the message tells of the trunk that is there.
    """
    asked = None if isinstance(family, str) and family == "auto" else get_family(family)
    prefixes = trunk_prefixes(raw)
    # The trunk's own prefix, or what stands before the 'backbone.' of an OpenMMLab model.
    outer = {p.removesuffix(inner) for p in prefixes[:1] for inner in ("", "backbone.") if p.endswith(inner)}
    for prefix in ("", *sorted(outer - {""}, key=len)):
        if all(key.startswith(prefix) for key in raw):
            keys = {k.removeprefix(prefix): v for k, v in raw.items()}
            found = detect_family(keys) if asked is None else asked if asked.matches(keys) else None
            if found is not None:
                return found, keys
    if asked is not None:
        return asked, raw  # what is missing is told by the strict comparison
    if not prefixes:
        raise no_trunk(raw)
    if len(prefixes) > 1:
        find_trunk(raw, BACKBONE)  # raises, and names them
    raise CheckpointError(
        f"The checkpoint holds {find_trunk(raw, BACKBONE).describe()}, together no network that this package knows. "
        "part='backbone' loads the trunk alone, load_backbone(model, source) fills a model's, "
        "convert_checkpoint(source, to='backbone') writes it."
    )


def _trunk(raw: dict[str, Tensor], family: str, part: str, notes: list[str]) -> tuple[Family, dict[str, Tensor]]:
    """Return the trunk in a checkpoint, and the family that it belongs to as far as its neighbours tell."""
    trunk = find_trunk(raw, part)
    if trunk.beside:
        notes.append(f"left out {len(trunk.beside)} entries beside the trunk: {shown_tops(trunk.beside)}")
    if family != "auto":
        return get_family(family), trunk.state
    if uses_inplace_abn(raw):
        return FAMILIES["openseg"], trunk.state
    for inner in ("backbone.", ""):
        if trunk.prefix.endswith(inner):
            outer = trunk.prefix.removesuffix(inner)
            found = detect_family({k.removeprefix(outer): v for k, v in raw.items() if k.startswith(outer)})
            if found is not None and not found.bare:
                return found, trunk.state
    return FAMILIES["backbone"], trunk.state


def _as_backbone(family: Family) -> Family:
    """The family ``backbone``, interpolating and normalising as `family` does."""
    backbone = FAMILIES["backbone"]
    told = {
        k: v for k, v in family.defaults.items() if k in ("upsample", "upsample_to", "align_corners", "bn_momentum")
    }
    return dataclasses.replace(backbone, defaults={**backbone.defaults, **told})


def _read(source: Any) -> Any:
    if not isinstance(source, (str, os.PathLike)):
        raise CheckpointError(
            f"A checkpoint is a path or a mapping; {type(source).__name__} given. For a module, pass its state_dict()."
        )
    return read_file(source)


def _infer(
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
    return config.override(**overrides)


def expected_shapes(config: HRNetConfig) -> dict[str, tuple[int, ...]]:
    """Return the canonical keys and shapes of a network, without allocating it."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in HRNetReference(config).state_dict().items()}


def check_state(state: Mapping[str, Tensor], config: HRNetConfig, *, family: str, drawn: Collection[str] = ()) -> None:
    """Compare a canonical state_dict with the network it is to fill.

    Batch counters may be absent altogether (files older than PyTorch 0.4.1 have none), and so may `drawn`.

    Raises:
        CheckpointError: anything missing, unexpected or mis-shaped.
    """
    odd = tuple(k for k, v in state.items() if not (_is_counter(v) if k.endswith(COUNTER) else _is_weight(v)))
    if odd:
        raise CheckpointError(
            f"{len(odd)} entries are no dense floating tensors (quantised, sparse or meta?): {', '.join(odd[:6])}. "
            "Convert them to floating point first; tensors on the meta device have no values to load.",
            unexpected=odd,
        )
    expected = expected_shapes(config)
    no_counters = not any(k.endswith(COUNTER) for k in state)
    needed = [k for k in expected if k not in drawn and not (no_counters and k.endswith(COUNTER))]
    missing = tuple(k for k in needed if k not in state)
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
    if any(map(is_trunk, (*missing, *unexpected, *(k for k, _, _ in mismatched)))):
        lines.append(
            "Nothing was loaded. Fetch a complete file, or drop entries that are not HRNet's and pass the mapping."
        )
    else:
        lines.append(
            "Nothing was loaded. The trunk fits: head='keep' takes the layers of the head that fit and draws the "
            "others at random, head='drop' draws the whole head, part='backbone' loads the trunk alone, and "
            "load_backbone(model, source) fills the trunk of a model that you have built."
        )
    raise CheckpointError("\n".join(lines), missing=missing, unexpected=unexpected, mismatched=mismatched)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)


def _is_weight(tensor: Tensor) -> bool:
    return _is_dense(tensor) and tensor.is_floating_point()


def _is_counter(tensor: Tensor) -> bool:
    """A whole number; of another type only where a whole state_dict was converted."""
    return _is_dense(tensor) and (not tensor.is_floating_point() or bool((tensor == tensor.round()).all()))


def _odd_values(state: Mapping[str, Tensor]) -> list[str]:
    """Tell of values that no training leaves: not finite, or of two layers in one place (HRNet ties no weights)."""
    odd = tuple(k for k, v in state.items() if v.is_floating_point() and not _finite(v))
    first: dict[int, str] = {}
    shared = tuple(k for k, v in state.items() if v.numel() and first.setdefault(v.data_ptr(), k) != k)
    lines = _listed("NaN or infinite values in", odd) + _listed(SHARED, shared)
    return [line.strip() for line in lines]


def _finite(tensor: Tensor) -> bool:
    wide = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # eight-bit types have no isfinite
    return bool(torch.isfinite(wide).all())


def _listed(what: str, names: tuple[str, ...], most: int = 10) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return [f"  {what} ({len(names)}): {', '.join(names[:most])}{more}"]


def convert_checkpoint(
    source: Source, to: str, *, family: str = "auto", torch04: bool = False, weights: str = "auto"
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under another family's names.

    Within one family, and between families of the same layers, every tensor is handed over bit for bit. Where the
    target has no biases before its head's normalisations (mmsegmentation), the authors' fold into ``running_mean``
    (the network computes the same in evaluation; in training those biases never mattered); the other way they are
    zeros. ``to="backbone"`` and ``to="mm_backbone"`` take the one trunk of any checkpoint, whatever stands beside it.
    A classification file becomes ``timm_features`` by leaving out what comes after its widening units, and the other
    way round those layers (for 1000 classes) are drawn at random; a note names them.

    Args:
        source: a path or mapping.
        to: one of :data:`FAMILIES`.
        family: of the source, or ``"auto"``.
        torch04: see :func:`parse_checkpoint`.
        weights: see :func:`parse_checkpoint`.

    Raises:
        CheckpointError: as :func:`parse_checkpoint`, or a target that cannot hold the source's head.
    """
    target = get_family(to)
    bare = target.name in ("backbone", "mm_backbone")
    part = BACKBONE if bare else WHOLE
    checkpoint = parse_checkpoint(source, family=family, torch04=torch04, weights=weights, part=part)
    checkpoint = _with_head_of(checkpoint, target)
    checkpoint.log_notes()
    state, head = checkpoint.state, checkpoint.config.head
    if not (bare or _holds(target, head)):
        able = [f.name for f in FAMILIES.values() if _holds(f, head)]
        raise CheckpointError(
            f"A {checkpoint.family.name!r} checkpoint ({head.kind} head) cannot be written as "
            f"{to!r}; it can be written as {', '.join(dict.fromkeys((*able, 'backbone', 'mm_backbone')))}."
        )
    if target.head_conv_bias is None:
        return target.from_canonical(state)
    return target.from_canonical(_with_biases(state) if target.head_conv_bias else _without_biases(state))


def _holds(family: Family, head: HeadConfig) -> bool:
    """Whether files of `family` can have such a head."""
    if head.kind not in family.heads or family.name == "pose_imagenet":
        return False
    widened = family.name == "timm_features"
    same_maps = head.kind != "features" or (head.feature_location == "incre") == widened
    return same_maps and all(getattr(head, name) == value for name, value in family.always.items())


def _with_head_of(checkpoint: Checkpoint, target: Family) -> Checkpoint:
    """Take away, or draw, what ``cls`` has behind the widening units and ``timm_features`` has not."""
    config, state = checkpoint.config, checkpoint.state
    if target.name == "timm_features" and config.head.kind == "c":
        head = HeadConfig("features", feature_location="incre")
        kept = {k: v for k, v in state.items() if is_trunk(k) or k.startswith("incre_modules.")}
        note = f"left out {shown_tops(k for k in state if k not in kept)}, which timm_features has not"
        config, state = dataclasses.replace(config, head=head), kept
    elif target.name in ("cls", "timm") and config.head.feature_location == "incre":
        config = dataclasses.replace(config, head=HeadConfig("c", IMAGENET_CLASSES))
        whole = HRNetReference(config).state_dict()
        added = [k for k in whole if k not in state]
        note = f"drawn at random: {shown_tops(added)}, which timm_features has not"
        state = {k: state[k] if k in state else whole[k] for k in whole}
    else:
        return checkpoint
    return dataclasses.replace(checkpoint, state=state, config=config, notes=(*checkpoint.notes, note))


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
