"""Recognition of the family of a flat state_dict: of a whole network, or of the trunk inside another model."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from hrnet_fast.checkpoints.families import FAMILIES, detect_family, get_family
from hrnet_fast.checkpoints.family import ANY_TRUNK, Family
from hrnet_fast.checkpoints.openseg import uses_inplace_abn
from hrnet_fast.checkpoints.trunk import BACKBONE, find_trunk, no_trunk, top_level_names, trunk_prefixes
from hrnet_fast.errors import CheckpointError


def recognise(raw: dict[str, Tensor], family: str) -> tuple[Family, dict[str, Tensor]]:
    """Return the family of a whole checkpoint, and its entries without a prefix that all keys share.

    Raises:
        CheckpointError: no family has these keys; the message describes the trunk that was found.
    """
    asked = None if isinstance(family, str) and family == "auto" else get_family(family)
    prefixes = trunk_prefixes(raw)
    # The prefix of the trunk, and the prefix before the 'backbone.' of an OpenMMLab model.
    outer = {p.removesuffix(inner) for p in prefixes[:1] for inner in ("", "backbone.") if p.endswith(inner)}
    for prefix in ("", *sorted(outer - {""}, key=len)):
        if all(key.startswith(prefix) for key in raw):
            keys = {k.removeprefix(prefix): v for k, v in raw.items()}
            found = detect_family(keys) if asked is None else asked if asked.matches(keys) else None
            if found is not None:
                return found, keys
    if asked is not None:
        return asked, raw  # the strict comparison reports what is missing
    if not prefixes:
        raise no_trunk(raw)
    if len(prefixes) > 1:
        find_trunk(raw, BACKBONE)  # raises an error that names them
    trunk = find_trunk(raw, BACKBONE)
    outside = [key for key in raw if not key.startswith(trunk.prefix)]
    hint = f" Or remove {top_level_names(outside)} and pass the mapping, if the rest is one network." if outside else ""
    raise CheckpointError(
        f"The checkpoint holds {trunk.describe()}; as a whole it is no network that this package knows. "
        "part='backbone' loads the trunk alone, load_backbone(model, source) fills a model's trunk, "
        "convert_checkpoint(source, to='backbone') "
        f"writes it.{hint}"
    )


def recognise_trunk(
    raw: dict[str, Tensor], family: str, part: str, notes: list[str]
) -> tuple[Family, dict[str, Tensor]]:
    """Return the family of the trunk, by the keys beside it, and the trunk under canonical names."""
    trunk = find_trunk(raw, part)
    if trunk.beside:
        notes.append(f"left out {len(trunk.beside)} entries beside the trunk: {top_level_names(trunk.beside)}")
    if family != "auto":
        named = get_family(family)
        return named, named.without_buffers(trunk.state, notes)
    if uses_inplace_abn(raw):
        return FAMILIES["openseg"], trunk.state
    for inner in ("backbone.", ""):
        if trunk.prefix.endswith(inner):
            outer = trunk.prefix.removesuffix(inner)
            found = detect_family({k.removeprefix(outer): v for k, v in raw.items() if k.startswith(outer)})
            if found is not None and found.name not in ANY_TRUNK:
                return found, found.without_buffers(trunk.state, notes)
    return FAMILIES["backbone"], trunk.state


def as_backbone(family: Family) -> Family:
    """Return the family ``backbone`` with the interpolation and normalisation defaults of `family`."""
    backbone = FAMILIES["backbone"]
    shared = {
        k: v for k, v in family.defaults.items() if k in ("upsample", "upsample_to", "align_corners", "bn_momentum")
    }
    return dataclasses.replace(backbone, defaults={**backbone.defaults, **shared})
