"""Reading, converting and writing checkpoints of every upstream.

The authors' parameter names are the canonical names. :mod:`parsing` runs these steps for :mod:`load` and
:mod:`convert`:

1. Read the file without running its code: :mod:`files`, with formats in :mod:`containers`, pickles in
   :mod:`unpickling`, allowed functions in :mod:`rebuilding` and all other objects in :mod:`inert`.
2. Unwrap it and select weights: :mod:`wrappers`, :mod:`weight_selection`.
3. Recognise its family: :mod:`recognition`, :mod:`families`, :mod:`trunk`.
4. Rename to the canonical names: a :class:`Family` per format in :mod:`authors`, :mod:`timm`, :mod:`openmmlab`,
   :mod:`openseg`, :mod:`csail`, :mod:`detectors`.
5. Infer the network from keys and shapes: :mod:`infer`, and the detector around it: :mod:`infer_detector`.
6. Compare all keys and shapes: :mod:`comparison`.
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
