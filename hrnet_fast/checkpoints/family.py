"""What a family of checkpoints is: its names, and what its files leave unsaid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hrnet_fast.errors import CheckpointError

# Families whose files tell nothing of the network that the trunk is of.
ANY_TRUNK = ("backbone", "mm_backbone")
_TRUNK = re.compile(r"(conv[12]|bn[12]|layer1|transition\d+|stage\d+)\.")


def is_trunk(key: str) -> bool:
    """Whether a canonical key belongs to stem, stages or transitions."""
    return _TRUNK.match(key) is not None


@dataclass(frozen=True)
class Family:
    """One upstream's checkpoint format.

    Attributes:
        name: what ``family=`` and ``to=`` call it.
        description: one line for people.
        heads: head kinds its files can hold.
        marks: key prefixes of which all occur in every such file (in its own names).
        renames: ``(its prefix, canonical prefix)``; the longest that fits applies. A key that none fits keeps its
            name, and may not be one that a rule gives.
        trunk_prefix: what stands before the trunk's keys.
        ignored: prefixes of what such files hold beside the HRNet (detection heads); dropped with a note.
        ignored_endings: of the buffers that its own layers have beside those of PyTorch's; dropped with a note.
        defaults: fields of :class:`HRNetConfig` that the files do not tell.
        signs: ``(key prefix, fields, reason)``: what a key beside the HRNet tells of it. The fields go before
            `defaults`, with the reason as a note.
        head_conv_bias: whether the format has biases before the head's normalisations; None where both occur, or where
            the head has no normalisation.
        always: fields of :class:`HeadConfig` that are the same in all its files; another head cannot be written so.
        keypoints: what its heatmaps' pixels stand for, unless told otherwise: a name in
            :data:`hrnet_fast.keypoints.METHODS`; ``"none"`` where its maps are no heatmaps; None where it has no maps,
            or networks of both kinds.
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

    @property
    def bare(self) -> bool:
        """Whether the trunk is all of the network that its files describe."""
        return self.heads == ("features",) and "incre_modules." not in self.marks

    def matches(self, keys: Mapping[str, object]) -> bool:
        """Whether a file with these keys is of this family."""
        return all(any(key.startswith(mark) for key in keys) for mark in self.marks)

    def defaults_for(self, keys: Mapping[str, object], notes: list[str]) -> dict[str, Any]:
        """Return the defaults for a file with these keys; what was concluded is said in `notes`."""
        told = dict(self.defaults)
        for prefix, fields, reason in self.signs:
            if any(key.startswith(prefix) for key in keys):
                told |= fields
                notes.append(reason)
        return told

    def to_canonical(self, state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
        """Rename to the authors' names; keys that fit no rule keep theirs and fail the strict comparison later.

        Raises:
            CheckpointError: trunk keys without the prefix, head keys that have the authors' name already, or two keys
                of one meaning.
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
                    f"Two of the checkpoint's keys mean {name}; one is {key}. Remove the one that is not wanted.",
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
        """Leave out the buffers that this code base's own layers have; they are said in `notes`."""
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
