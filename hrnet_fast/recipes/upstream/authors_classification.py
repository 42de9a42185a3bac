"""Reader of the authors' classification configurations."""

from __future__ import annotations

from typing import Any

from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.authors_files import Defaults, read_training

_DEFAULTS = Defaults(gpus=1, batch_size=32, epochs=140, lr=1e-3, weight_decay=1e-4, momentum=0.9, steps=(90, 110))
# Entries that the default.py has from the pose repository, which no code reads.
_OF_POSE = ("FLIP", "SCALE_FACTOR", "ROT_FACTOR", "PROB_HALF_BODY", "NUM_JOINTS_HALF_BODY", "COLOR_RGB", "SELECT_DATA")


def read_classification(cfg: Section, notes: list[str]) -> dict[str, Any]:
    """Return the sections of a classification configuration, without the model (``lib/config/default.py``)."""
    dataset, train, test, model = (cfg.section(name, {}) for name in ("DATASET", "TRAIN", "TEST", "MODEL"))
    dataset.no_effect("DATASET", "ROOT", "DATA_FORMAT", "HYBRID_JOINTS_TYPE", *_OF_POSE)
    test.no_effect(*test.values)  # no code reads anything but the batch size and the model's file
    cfg.no_effect("LOSS")
    side = model.get("IMAGE_SIZE", (256, 256))[0]
    recipe = {
        "task": "classification",
        "data": {
            "layout": "image_folder",
            "train": {"split": dataset.get("TRAIN_SET", "train")},
            "val": {"split": dataset.get("TEST_SET", "valid")},
        },
        "inputs": {"input_size": [side, side], "resize": int(side / 0.875)},
        "loss": {"kind": "cross_entropy"},
        **read_training(cfg, train, notes, _DEFAULTS),
        "evaluation": {"metric": "top_k"},
    }
    dataset.close()
    train.close()
    return recipe
