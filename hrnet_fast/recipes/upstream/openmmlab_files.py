"""``from_openmmlab_config``: configurations of mmpose 1.x, mmsegmentation 1.x and mmdetection 3.x as recipes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.recipes.recipe import Recipe

MM_CALLER = "from_openmmlab_config"
logger = logging.getLogger("hrnet_fast.recipes")
# Sections of a file; other names in it are variables that were used to write them.
_SECTIONS = (
    *("model", "train_dataloader", "val_dataloader", "val_evaluator", "optim_wrapper", "param_scheduler", "train_cfg"),
    *("auto_scale_lr", "custom_hooks", "randomness", "default_scope", "load_from"),
)


def from_openmmlab_config(
    source: str | os.PathLike[str] | Any, *, gpus: int | None = None, train_images: int | None = None
) -> Recipe:
    """Return the recipe of a top-down configuration of mmpose, of one of mmsegmentation, or of a detector's.

    Transforms, losses, optimizers, schedules, data sets and metrics that a recipe has are converted; every other one
    raises an error with its name. What differs is in :attr:`Recipe.notes`, and is logged (``hrnet_fast.recipes``). The
    data folder of the recipe is the file's ``data_root``.

    Args:
        source: a ``.py`` file (read by mmengine, which runs it), an mmengine ``Config`` or a mapping.
        gpus: devices that the batch size of ``train_dataloader`` is for. None: as the file's name (``8xb64``) or
            ``auto_scale_lr`` says, otherwise one.
        train_images: pictures of the training set, to give iterations in epochs. None: known for Cityscapes, ADE20K,
            PASCAL-Context and COCO.

    Raises:
        ConfigError: the configuration has something that no recipe has, or a key that is not known.
    """
    from hrnet_fast.models.upstream.config_files import read_source
    from hrnet_fast.models.upstream.section import Section
    from hrnet_fast.recipes.upstream.openmmlab_detection import read_detection_sections

    data = read_source(source)
    lacking = [name for name in ("model", "train_dataloader", "optim_wrapper", "train_cfg") if not data.get(name)]
    if lacking:
        raise ConfigError(f"{MM_CALLER}: {', '.join(lacking)} missing; accepted is a whole file of version 1.x.")
    cfg = Section({key: data[key] for key in _SECTIONS if data.get(key) is not None}, caller=MM_CALLER)
    file = os.path.basename(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else ""
    notes: list[str] = []
    batch = _batch_size(data, file, gpus, notes)
    if {"rpn_head", "bbox_head"} & set(data["model"]):
        recipe, origin = read_detection_sections(cfg, data, notes, batch, train_images), "mmdetection"
    else:
        recipe, origin = _read_maps(cfg, data, notes, batch, train_images)
    _read_rest(cfg, recipe, notes)
    for note in notes:
        logger.warning("%s", note)
    description = f"{file or name_of(data['model'])}, from {origin}"
    return Recipe.from_dict({"description": description, **recipe, "notes": notes})


def _read_maps(
    cfg: Any, data: Mapping[str, Any], notes: list[str], batch: int, train_images: int | None
) -> tuple[dict[str, Any], str]:
    """Return all sections of a network of heatmaps or of classes of pixels, and its code base."""
    from hrnet_fast.models.upstream import read_configuration
    from hrnet_fast.recipes.model_options import describe_network
    from hrnet_fast.recipes.upstream.openmmlab_pose import read_pose_sections
    from hrnet_fast.recipes.upstream.openmmlab_segmentation import read_segmentation_sections

    network = read_configuration(data)
    notes += network.notes
    config, sync = network.config, network.config.norm.kind == "syncbn"
    if sync:
        config = config.override(norm_kind="bn")
    if network.config.head.kind in ("v2", "ocr") and "decode_head" in data["model"]:
        recipe = read_segmentation_sections(cfg, data, notes, batch, train_images)
        if config.head.kind == "ocr":
            config = config.override(ocr_outputs="both")
    elif network.keypoints is not None:
        recipe = read_pose_sections(cfg, data, notes, batch, network.keypoints)
        config = config.override(init="normal")  # as mmpose's HRNet and HeatmapHead
    else:
        raise ConfigError(
            f"{MM_CALLER}: {name_of(data['model'])} is neither a detector nor trained on heatmaps of boxes or on masks."
        )
    recipe["loop"]["sync_bn"] = sync
    recipe["model"] = describe_network(config)
    return recipe, "mmsegmentation" if "decode_head" in data["model"] else "mmpose"


def name_of(part: Any) -> str:
    """Return a registered name without its scope."""
    given = part.get("type", "") if isinstance(part, Mapping) else part
    return str(getattr(given, "__name__", given)).rpartition(".")[2]


def _batch_size(data: Mapping[str, Any], file: str, gpus: int | None, notes: list[str]) -> int:
    """Return the batch size that the learning rate is for."""
    each = data["train_dataloader"].get("batch_size", 1)
    base = (data.get("auto_scale_lr") or {}).get("base_batch_size")
    named = re.search(r"[_-](\d+)xb\d+", file)
    if gpus is not None:
        return int(each * gpus)
    if named is not None:
        return int(each * int(named[1]))
    if base is not None:
        return int(base)
    notes.append(f"a batch is the {each} of train_dataloader.batch_size, on one device; gpus= is for more")
    return int(each)


def _read_rest(cfg: Any, recipe: dict[str, Any], notes: list[str]) -> None:
    cfg.no_effect("auto_scale_lr", "default_scope")
    if cfg.get("load_from", None):
        notes.append(f"load_from={cfg.get('load_from')} is not loaded by itself; give it as init (--init)")
    randomness = cfg.section("randomness", {})
    if randomness.get("seed", None) is not None:
        recipe["loop"]["seed"] = randomness.get("seed")
    recipe["loop"]["deterministic"] = randomness.get("deterministic", False)
    randomness.no_effect("diff_rank_seed")
    randomness.close()
    for hook in cfg.get("custom_hooks", ()):
        name = name_of(hook)
        if name == "EMAHook":
            recipe["loop"]["ema"] = 1 - hook.get("momentum", 0.0002)
            notes.append(f"EMAHook's {hook.get('ema_type', 'ExponentialMovingAverage')} is a plain exponential average")
        elif name != "SyncBuffersHook":  # running statistics are the first process's here
            raise ConfigError(f"{MM_CALLER}: custom_hooks has {name}; accepted are EMAHook and SyncBuffersHook.")
    pretrained = cfg.values["model"].get("pretrained") or (cfg.values["model"]["backbone"].get("init_cfg") or {}).get(
        "checkpoint"
    )
    if pretrained:
        notes.append(f"{pretrained} is not loaded by itself; give its file as init (--init)")
    cfg.no_effect("model")
    cfg.close()
