"""Reader of the authors' segmentation configurations: branches master, pytorch-v1.1 and HRNet-OCR."""

from __future__ import annotations

from typing import Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.authors_config import is_ocr_branch
from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.authors_files import CALLER, Defaults, count_gpus, read_optimizer

_DEFAULTS = Defaults(gpus=1, batch_size=32, epochs=484, lr=0.01, weight_decay=1e-4, momentum=0.9)
# Of the 19 classes, in both losses (``lib/datasets/cityscapes.py``).
CITYSCAPES_WEIGHTS = (
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
    1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip
_LIP_PAIRS = ((14, 15), (16, 17), (18, 19))
_SETS = ("cityscapes", "lip", "pascal_ctx", "ade20k", "cocostuff")
# What the parameter names of a whole head contain.
_HEAD_WORDS = {"seg_hrnet": {"last_layer"}, "seg_hrnet_ocr": {"cls", "aux", "ocr"}}


def read_segmentation(cfg: Section, notes: list[str]) -> dict[str, Any]:
    """Return the sections of a segmentation configuration, without the model (``lib/config/default.py``)."""
    dataset, train, test, model = (cfg.section(name, {}) for name in ("DATASET", "TRAIN", "TEST", "MODEL"))
    loss, newer = cfg.section("LOSS", {}), is_ocr_branch(cfg)
    kind = dataset.expect("DATASET", *_SETS)
    width, height = train.get("IMAGE_SIZE", (1024, 512))
    inputs: dict[str, Any] = {
        "crop_size": [height, width],
        "base_size": train.get("BASE_SIZE", 2048),
        "scales": [0.5, 0.5 + train.get("SCALE_FACTOR", 16) / 10],
        "scale_step": 0.1,
        "flip_probability": 0.5 if train.get("FLIP", True) else 0.0,
    }
    if kind == "lip":
        inputs |= {"stretch": True, "flip_first": True}
    shift = train.get("RANDOM_BRIGHTNESS_SHIFT_VALUE", 10)
    if train.get("RANDOM_BRIGHTNESS", False):
        inputs["colors"] = {"brightness_shift": shift}
    train.expect("MULTI_SCALE", True)
    train.expect("DOWNSAMPLERATE", 1)
    train.expect("SHUFFLE", True)
    train.expect("BEGIN_EPOCH", 0)
    train.no_effect("RESUME", "NUM_SAMPLES", "LR_FACTOR", "LR_STEP", "FREEZE_LAYERS", "FREEZE_EPOCHS")  # nor read
    if newer and kind in ("pascal_ctx", "ade20k", "cocostuff"):
        inputs["resize_shorter"] = inputs["base_size"]
    optimizer = read_optimizer(train, notes, _DEFAULTS, ("sgd",))
    optimizer["head_lr_factor"] = _head_factor(train, str(model.get("NAME")).lower())
    batch = train.get("BATCH_SIZE_PER_GPU", _DEFAULTS.batch_size) * count_gpus(cfg, _DEFAULTS.gpus)
    if train.get("EXTRA_EPOCH", 0):
        raise ConfigError(
            f"{CALLER}: TRAIN.EXTRA_EPOCH is {train.get('EXTRA_EPOCH')}, a second phase on DATASET.EXTRA_TRAIN_SET; "
            "accepted is 0. Train the first phase so, and the second from its final.pth (--init) with "
            f"DATASET.TRAIN_SET={dataset.get('EXTRA_TRAIN_SET', '')!r}, TRAIN.END_EPOCH={train.get('EXTRA_EPOCH')} and "
            f"TRAIN.LR={train.get('EXTRA_LR', 1e-3)}; the authors' code keeps the optimizer's momentum between them."
        )
    train.no_effect("EXTRA_LR")
    dataset.no_effect("EXTRA_TRAIN_SET")
    recipe = {
        "task": "segmentation",
        "data": _data(kind, newer, dataset, train, notes),
        "inputs": inputs,
        "loss": _loss(kind, loss),
        "optimizer": optimizer,
        "schedule": {"kind": "poly", "power": 0.9, "delay": 1},
        "loop": {
            "epochs": train.get("END_EPOCH", _DEFAULTS.epochs),
            "batch_size": batch,
            "sync_bn": True,
            "keep_last_batch": False,
        },
        "evaluation": _evaluation(kind, newer, test, notes),
    }
    for section in (dataset, train, test, loss):
        section.close()
    return recipe


def _head_factor(train: Section, network: str) -> float:
    """Return the factor on the head's learning rate; other parts of the network cannot have one."""
    words, factor = set(train.get("NONBACKBONE_KEYWORDS", ()) or ()), train.get("NONBACKBONE_MULT", 10)
    if not words:
        return 1.0
    if words != _HEAD_WORDS[network]:
        accepted = sorted(_HEAD_WORDS[network])
        raise ConfigError(
            f"{CALLER}: TRAIN.NONBACKBONE_KEYWORDS is {sorted(words)}; accepted is the whole head, {accepted}, or []."
        )
    return float(factor)


def _data(kind: str, newer: bool, dataset: Section, train: Section, notes: list[str]) -> dict[str, Any]:
    dataset.no_effect("ROOT")
    classes = dataset.get("NUM_CLASSES", 19)
    ignored = train.get("IGNORE_LABEL", -1)
    if ignored == -1:
        notes.append("TRAIN.IGNORE_LABEL=-1 is read as 255: labels are bytes here")
        ignored = 255
    lists = {
        "train": dataset.get("TRAIN_SET", "list/cityscapes/train.lst"),
        "val": dataset.get("TEST_SET", "list/cityscapes/val.lst"),
    }
    if kind == "pascal_ctx" and not newer:
        notes.append("trainval_merged.json is not read: masks are expected as the reader pascal_context has them")
        root = "pascal_ctx/VOCdevkit/VOC2010"
        part = {"root": root, "num_classes": classes, "ignore_label": ignored}
        return {"layout": "pascal_context", **{k: {"split": v, **part} for k, v in lists.items()}}
    folders: dict[str, Any] = {"images": "."}
    if not newer:
        folders = {"images": "cityscapes"}
        if kind == "lip":
            folders = {"images": "lip/TrainVal_images", "masks": "lip/TrainVal_parsing_annotations"}
    part = {**folders, "num_classes": classes, "ignore_label": ignored}
    tables = {"cityscapes": "cityscapes", "ade20k": "from_one", "cocostuff": "coco_stuff"}
    if kind == "pascal_ctx" and classes == 59:
        tables["pascal_ctx"] = "from_one"
    if kind == "lip":
        part["swapped_classes"] = _LIP_PAIRS
    if kind in tables:
        part["label_map"] = tables[kind]
    return {"layout": "segmentation_list", **{k: {"list_file": v, **part} for k, v in lists.items()}}


def _loss(kind: str, loss: Section) -> dict[str, Any]:
    loss.no_effect("CLASS_BALANCE")  # no code reads it
    weights = tuple(loss.get("BALANCE_WEIGHTS", (1,)))
    if weights not in ((1,), (1.0,)) and len(weights) != 2:
        raise ConfigError(f"{CALLER}: LOSS.BALANCE_WEIGHTS is {list(weights)}; accepted are [1] and two weights.")
    found: dict[str, Any] = {
        "class_weights": CITYSCAPES_WEIGHTS if kind == "cityscapes" else None,
        "output_weights": weights if len(weights) == 2 else None,
    }
    threshold, kept = loss.get("OHEMTHRES", 0.9), loss.get("OHEMKEEP", 100_000)
    if loss.get("USE_OHEM", False):
        return {"kind": "ohem_cross_entropy", "threshold": threshold, "min_kept": max(1, kept), **found}
    return {"kind": "pixel_cross_entropy", **found}


def _evaluation(kind: str, newer: bool, test: Section, notes: list[str]) -> dict[str, Any]:
    test.no_effect("MODEL_FILE", "BATCH_SIZE_PER_GPU", "MULTI_SCALE")  # SCALE_LIST is read instead of the last
    test.expect("CENTER_CROP_TEST", False)
    test.expect("OUTPUT_INDEX", -1)
    if test.get("NUM_SAMPLES", 0):
        notes.append(f"all pictures are evaluated while training, not the first {test.get('NUM_SAMPLES')} alone")
    width, height = test.get("IMAGE_SIZE", (2048, 1024))
    if newer and kind in ("pascal_ctx", "ade20k", "cocostuff"):
        notes.append("the test does not resize pictures by the shorter side first")
    own = kind == "cityscapes"
    return {
        "metric": "miou",
        "average": "exp",
        "flip": test.get("FLIP_TEST", False),
        "scales": test.get("SCALE_LIST", (1,)),
        "base_size": test.get("BASE_SIZE", 2048),
        "window": [height, width],
        "stride": 1.0 if own else 2 / 3,
        "pad_windows": not own,
        "size": [height, width] if kind == "lip" else None,
        "batch_size": 1,
    }
