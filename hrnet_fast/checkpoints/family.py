"""``Family``: the description of one upstream's checkpoint format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from hrnet_fast.errors import CheckpointError

# The names in FAMILIES, by what their files hold: type checkers know the class that load_checkpoint returns for each.
DetectorFamily = Literal[
    "mmdet_htc", "mmdet_cascade_mask_rcnn", "mmdet_cascade_rcnn", "mmdet_mask_rcnn", "mmdet_faster_rcnn", "mmdet_fcos"
]
NetworkFamily = Literal[
    "hrnet_fast", "v1h", "mmseg_ocr", "mmseg", "mmpose_face", "mmpose_0x_face", "mmpose", "mmpose_0x",
    "mmpose_0x_higher", "det", "mmdet", "mmdet_1x", "openseg_ocr", "openseg", "mm_backbone", "seg_ocr", "seg",
    "higher_hrnet", "pose", "face", "pose_imagenet", "cls", "timm", "timm_features", "csail", "backbone",
]  # fmt: skip
# Families whose files contain a trunk alone.
ANY_TRUNK = ("backbone", "mm_backbone")
_TRUNK = re.compile(r"(conv[12]|bn[12]|layer1|transition\d+|stage\d+)\.")


def is_trunk(key: str) -> bool:
    """Whether a canonical key belongs to stem, stages or transitions."""
    return _TRUNK.match(key) is not None


@dataclass(frozen=True)
class Family:
    """One upstream's checkpoint format.

    Attributes:
        name: value of ``family=`` and ``to=``.
        description: one line for messages.
        heads: head kinds its files can hold.
        marks: key prefixes, in its own names, that all occur in each of its files.
        renames: ``(its prefix, canonical prefix)``; the longest matching prefix applies. A key without a match keeps
            its name, which must not begin with a canonical prefix of a rule.
        trunk_prefix: prefix of the trunk's keys.
        ignored: prefixes of entries beside the HRNet (detection heads); dropped with a note.
        ignored_endings: endings of buffers of its own layer classes; dropped with a note.
        defaults: fields of :class:`HRNetConfig` that its files do not contain.
        signs: ``(key prefix, fields, reason)``: fields that a key beside the HRNet implies. They override
            `defaults`, with the reason as a note.
        head_conv_bias: whether the convolutions before the head's normalisations have biases; None if both occur, or if
            the head has no normalisation.
        always: fields of :class:`HeadConfig` with one value in all its files; other heads cannot be written.
        keypoints: default method to decode its heatmaps, a name in :data:`hrnet_fast.keypoints.METHODS`; ``"none"`` if
            its maps are no heatmaps; None if it has no maps, or networks of both kinds.
    """

    name: str
    description: str
    heads: tuple[str, ...]
    marks: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    trunk_prefix: str = ""
    ignored: tuple[str, ...] = ()
    ignored_endings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    signs: tuple[tuple[str, Mapping[str, Any], str], ...] = ()
    head_conv_bias: bool | None = None
    always: Mapping[str, Any] = field(default_factory=dict)
    keypoints: str | None = None
    detector: str = ""

    @property
    def bare(self) -> bool:
        """Whether its files describe the trunk alone."""
        return self.heads == ("features",) and "incre_modules." not in self.marks

    def matches(self, keys: Mapping[str, object]) -> bool:
        """Whether a file with these keys is of this family."""
        return all(any(key.startswith(mark) for key in keys) for mark in self.marks)

    def defaults_for(self, keys: Mapping[str, object], notes: list[str]) -> dict[str, Any]:
        """Return the default fields for a file with these keys; `notes` receives the reasons of `signs`."""
        fields_by_default = dict(self.defaults)
        for prefix, fields, reason in self.signs:
            if any(key.startswith(prefix) for key in keys):
                fields_by_default |= fields
                notes.append(reason)
        return fields_by_default

    def to_canonical(self, state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
        """Rename to the canonical names. Keys without a rule keep their name, and the strict comparison reports them.

        Raises:
            CheckpointError: trunk keys without the prefix, head keys that already have the canonical name, or two
                keys that map to one name.
        """
        ignored = [k for k in state if k.startswith(self.ignored)] if self.ignored else []
        if ignored:
            tops = sorted({k.split(".")[0] for k in ignored})
            notes.append(f"left out {len(ignored)} entries that are not HRNet's: {', '.join(tops)}")
        kept = self.without_buffers({k: v for k, v in state.items() if k not in set(ignored)}, notes)
        stray = tuple(k for k in kept if self.trunk_prefix and is_trunk(k))
        if stray:
            raise CheckpointError(
                f"The checkpoint has trunk keys without {self.trunk_prefix!r} beside those with it: "
                f"{', '.join(stray[:6])}. Remove them, or give all keys the same form.",
                unexpected=stray,
            )
        out: dict[str, Tensor] = {}
        for key, value in kept.items():
            name = self._to_canonical_key(key)
            if name in out:
                raise CheckpointError(
                    f"Two keys of the checkpoint map to {name}; one is {key}. Remove one of them.",
                    unexpected=(key,),
                )
            out[name] = value
        own, canonical = (tuple(rule[side] for rule in self.renames) for side in (0, 1))
        foreign = tuple(k for k in kept if k.startswith(canonical) and not k.startswith(own))
        if foreign:
            raise CheckpointError(
                f"The checkpoint was read as family {self.name!r}, which has other names for {', '.join(foreign[:6])}. "
                "Remove these keys, or give all keys the names of one family.",
                unexpected=foreign,
            )
        return out

    def without_buffers(self, state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
        """Drop the buffers of this code base's own layer classes; `notes` receives one line."""
        kept = {k: v for k, v in state.items() if not (self.ignored_endings and k.endswith(self.ignored_endings))}
        if len(kept) < len(state):
            notes.append(
                f"left out {len(state) - len(kept)} buffers of {self.name}'s own layers: "
                f"{', '.join(self.ignored_endings)}"
            )
        return kept

    def from_canonical(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename from the authors' names to this family's."""
        return {self._from_canonical_key(k): v for k, v in state.items()}

    def _to_canonical_key(self, key: str) -> str:
        bare = key.removeprefix(self.trunk_prefix)
        if bare != key and is_trunk(bare):
            return bare
        return _rename(key, self.renames)

    def _from_canonical_key(self, key: str) -> str:
        if is_trunk(key):
            return self.trunk_prefix + key
        return _rename(key, tuple((canonical, own) for own, canonical in self.renames))


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    fitting = [rule for rule in rules if key.startswith(rule[0])]
    if not fitting:
        return key
    prefix, new = max(fitting, key=lambda rule: len(rule[0]))
    return new + key.removeprefix(prefix)
