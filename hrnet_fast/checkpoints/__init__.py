"""Checkpoints of every upstream, in and out.

The authors' names are the canonical ones. A file is read without running what it holds (:mod:`files`: formats in
:mod:`containers`, pickles in :mod:`unpickling`, what they may call in :mod:`rebuilding`, all else in :mod:`inert`),
unwrapped (:mod:`wrappers`, :mod:`averages`), recognised (:mod:`recognition`, :mod:`registry`, :mod:`trunk`), renamed
(one :class:`Family` per format in :mod:`authors`, :mod:`timm`, :mod:`openmmlab`, :mod:`openseg`), its network inferred
(:mod:`infer`) and compared strictly (:mod:`comparison`). :mod:`parsing` does all of that for :mod:`load` and
:mod:`convert`.
"""

from hrnet_fast.checkpoints.convert import convert_checkpoint
from hrnet_fast.checkpoints.families import FAMILIES
from hrnet_fast.checkpoints.files import save_checkpoint
from hrnet_fast.checkpoints.load import load_backbone, load_checkpoint
from hrnet_fast.checkpoints.parsing import Checkpoint, parse_checkpoint

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "convert_checkpoint",
    "load_backbone",
    "load_checkpoint",
    "parse_checkpoint",
    "save_checkpoint",
]
