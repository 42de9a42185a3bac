"""Finding an HRNet's trunk (stem, stages, transitions) among the keys of any checkpoint, by structure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hrnet_fast.checkpoints.family import is_trunk
from hrnet_fast.errors import CheckpointError, some_of

# The first convolution of stage 2's highest resolution, which every HRNet has. Other networks with parallel branches
# (HRFormer, Lite-HRNet) have other units.
_MARK = re.compile(r"(.*\.)?stage2\.0\.branches\.0\.0\.conv1\.weight")
WHOLE, BACKBONE = "whole", "backbone"


@dataclass(frozen=True)
class Trunk:
    """A trunk and the other keys of its checkpoint.

    Attributes:
        prefix: prefix of the trunk's keys with its last dot; empty if there is none.
        state: the trunk under canonical names.
        beside: the other keys, unchanged.
    """

    prefix: str
    state: dict[str, Tensor]
    beside: tuple[str, ...]

    def describe(self) -> str:
        """Return prefix and width of the trunk and the keys beside it, for messages."""
        first = self.state[_mark("")]
        width = f" of width {first.shape[1]}" if first.dim() == 4 else ""
        where = f"under {self.prefix!r}" if self.prefix else "without a prefix"
        return f"an HRNet trunk{width} {where}{f', beside {top_level_names(self.beside)}' if self.beside else ''}"


def _mark(prefix: str) -> str:
    return f"{prefix}stage2.0.branches.0.0.conv1.weight"


def trunk_prefixes(keys: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of all HRNet trunks, with their last dot, in the order of the keys."""
    found = (_MARK.fullmatch(key) for key in keys)
    return tuple(dict.fromkeys(match[1] or "" for match in found if match))


def find_trunk(state: Mapping[str, Tensor], part: str) -> Trunk:
    """Return the trunk of a flat state_dict.

    Args:
        state: tensors under any names.
        part: ``"backbone"`` for the only trunk, or the prefix of one of several.

    Raises:
        CheckpointError: there is no trunk, there are several, or none has the given prefix.
    """
    prefixes = trunk_prefixes(state)
    if not prefixes:
        raise no_trunk(state)
    named = [p for p in prefixes if part != BACKBONE and p.removesuffix(".") == part.removesuffix(".")]
    if not named and (part != BACKBONE or len(prefixes) > 1):
        shown = ", ".join(map(repr, prefixes))
        problem = f"part={part!r} names none" if part != BACKBONE else f"the checkpoint has {len(prefixes)}"
        raise CheckpointError(
            f"One HRNet trunk is expected, but {problem}: there are trunks under {shown}. Give one of them, "
            f"such as part={prefixes[0]!r}, or remove the others' keys."
        )
    prefix = (named or list(prefixes))[0]
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    beside = tuple(k for k in state if not (k.startswith(prefix) and is_trunk(k.removeprefix(prefix))))
    return Trunk(prefix, {k: v for k, v in inside.items() if is_trunk(k)}, beside)


def no_trunk(keys: Mapping[str, Any]) -> CheckpointError:
    """Return the error of a checkpoint without an HRNet."""
    first = ", ".join(list(keys)[:6])
    return CheckpointError(
        f"No HRNet found in the checkpoint: its keys begin {first or '(none)'}. It needs stem, stages and transitions "
        "under the authors' names (stage2.0.branches...), with any prefix."
    )


def top_level_names(keys: Iterable[str], most: int = 6) -> str:
    """Return the distinct first parts of keys for messages, such as ``decoder., fc.``."""
    tops = [f"{top}." for top in dict.fromkeys(key.split(".")[0] for key in keys)]
    return some_of(tops, most)
