"""``from_authors_config``: the authors' yaml files as recipes."""

from __future__ import annotations

import ast
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.recipes.recipe import Recipe

if TYPE_CHECKING:
    from hrnet_fast.models.upstream.section import Section

CALLER = "from_authors_config"
logger = logging.getLogger("hrnet_fast.recipes")
# Top-level entries that change no result: folders, printing, cuDNN's speed.
_NO_EFFECT = (
    *("OUTPUT_DIR", "LOG_DIR", "DATA_DIR", "PRINT_FREQ", "AUTO_RESUME", "PIN_MEMORY", "RANK", "DEBUG"),
    *("VERBOSE", "DIST_BACKEND", "MULTIPROCESSING_DISTRIBUTED"),
)


def from_authors_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    """Return the recipe of a yaml file of the authors' pose, segmentation, face or classification repository.

    Each key is read, is known to change nothing, or raises an error. Absent keys take the default of their repository
    (``lib/config/default.py``). The data folder of the recipe is the file's ``DATASET.ROOT``. What was assumed or left
    out is in :attr:`Recipe.notes`, and is logged (``hrnet_fast.recipes``).

    Args:
        source: the file's path, or its content.

    Raises:
        ConfigError: the file is no such configuration, has an unknown key, or a setting that no recipe has.
    """
    from hrnet_fast.models.upstream import read_configuration
    from hrnet_fast.models.upstream.config_files import read_source
    from hrnet_fast.models.upstream.section import Section
    from hrnet_fast.recipes.model_options import describe_network
    from hrnet_fast.recipes.upstream.authors_classification import read_classification
    from hrnet_fast.recipes.upstream.authors_keypoints import read_face, read_pose
    from hrnet_fast.recipes.upstream.authors_segmentation import read_segmentation

    readers: dict[str, Callable[..., dict[str, Any]]] = {
        "pose_hrnet": read_pose,
        "hrnet": read_face,
        "cls_hrnet": read_classification,
        "seg_hrnet": read_segmentation,
        "seg_hrnet_ocr": read_segmentation,
    }
    data = read_source(source)
    if "MODEL" not in data:
        raise ConfigError(f"{CALLER}: no MODEL among the keys {', '.join(data)}; accepted is a file of the authors'.")
    network = read_configuration(data)
    name = str(data["MODEL"].get("NAME", "")).lower()
    if name not in readers:
        raise ConfigError(
            f"{CALLER}: MODEL.NAME={name!r} is trained bottom-up, for which there is no task; accepted are "
            f"{', '.join(readers)}."
        )
    cfg = Section(data, caller=CALLER)
    cfg.no_effect(*_NO_EFFECT)
    cfg.no_effect("MODEL")
    notes = list(network.notes)
    recipe = readers[name](cfg, notes)
    recipe["model"] = describe_network(network.config)
    recipe["data"]["workers"] = cfg.get("WORKERS", 4)
    cudnn = cfg.section("CUDNN", {})
    cudnn.no_effect("BENCHMARK")
    cudnn.expect("ENABLED", True)
    recipe["loop"]["deterministic"] = cudnn.get("DETERMINISTIC", False)
    cudnn.close()
    cfg.no_effect("GPUS")
    cfg.close()
    pretrained = data["MODEL"].get("PRETRAINED")
    if pretrained:
        notes.append(f"MODEL.PRETRAINED={pretrained} is not loaded by itself; give it as init (--init)")
    for note in notes:
        logger.warning("%s", note)
    where = f" ({os.path.basename(os.fspath(source))})" if isinstance(source, (str, os.PathLike)) else ""
    description = f"{name}, {cfg.values['DATASET'].get('DATASET')}, from the authors' configuration{where}"
    return Recipe.from_dict({"description": description, **recipe, "notes": notes})


@dataclass(frozen=True)
class Defaults:
    """What a repository's ``lib/config/default.py`` has where a file is silent."""

    gpus: int
    batch_size: int
    epochs: int
    lr: float
    weight_decay: float
    momentum: float
    steps: tuple[int, ...] = ()


def count_gpus(cfg: Section, default: int) -> int:
    """Return the number of devices, for each of which the batch size is given: ``(0,1,2,3)``, in yaml a text.

    Raises:
        ConfigError: it is something else.
    """
    value = cfg.get("GPUS", (0,) * default)
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        found = None
    if isinstance(found, int):
        found = (found,)
    if not isinstance(found, (list, tuple)) or not found:
        raise ConfigError(f"{CALLER}: GPUS is {value!r}; accepted is a list of devices, such as (0,1,2,3).")
    return len(found)


def read_training(cfg: Section, train: Section, notes: list[str], default: Defaults) -> dict[str, Any]:
    """Return optimizer, schedule and loop of a ``TRAIN`` section, by epochs (pose, faces and classification).

    Raises:
        ConfigError: a setting that no recipe has.
    """
    train.no_effect("RESUME", "CHECKPOINT", "GAMMA1", "GAMMA2")  # the last two are read by no optimizer
    train.expect("SHUFFLE", True)
    train.expect("BEGIN_EPOCH", 0)
    epochs = train.get("END_EPOCH", default.epochs)
    steps = train.get("LR_STEP", default.steps)
    if isinstance(steps, int):
        steps = list(range(steps, epochs, steps))
    batch = train.get("BATCH_SIZE_PER_GPU", default.batch_size) * count_gpus(cfg, default.gpus)
    return {
        "optimizer": read_optimizer(train, notes, default),
        "schedule": {"kind": "step", "milestones": steps, "factor": train.get("LR_FACTOR", 0.1)},
        "loop": {"epochs": epochs, "batch_size": batch},
    }


def read_optimizer(
    train: Section, notes: list[str], default: Defaults, accepted: tuple[str, ...] = ("adam", "sgd")
) -> dict[str, Any]:
    """Return the optimizer section. The authors' code gives Adam the learning rate alone.

    Raises:
        ConfigError: another optimizer than Adam and SGD.
    """
    kind = train.expect("OPTIMIZER", *accepted)
    lr, decay = train.get("LR", default.lr), train.get("WD", default.weight_decay)
    momentum, nesterov = train.get("MOMENTUM", default.momentum), train.get("NESTEROV", False)
    if kind == "sgd":
        return {"kind": kind, "lr": lr, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    if decay:
        notes.append(f"TRAIN.WD={decay} is left out: the authors' code never gives it to Adam")
    return {"kind": kind, "lr": lr}
