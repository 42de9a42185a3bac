"""Readers that mmpose, mmsegmentation and mmdetection share: optimizer, schedule, loop, statistics, transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hrnet_fast.errors import ConfigError
from hrnet_fast.models.upstream.section import Section
from hrnet_fast.recipes.upstream.openmmlab_files import MM_CALLER, name_of

Reader = Callable[[Section, dict[str, Any], list[str]], None]


def unsupported(what: str, name: str, accepted: Sequence[str]) -> ConfigError:
    """Return the error for a registered name that no recipe has."""
    return ConfigError(f"{MM_CALLER}: {what} has {name}, which no recipe has; accepted are {', '.join(accepted)}.")


def read_pipeline(
    pipeline: Sequence[Any], what: str, readers: Mapping[str, Reader], notes: list[str]
) -> dict[str, Any]:
    """Return what the transforms say, each by its reader, which gets its section and adds to the result.

    Raises:
        ConfigError: a transform has no reader, or an unknown key.
    """
    found: dict[str, Any] = {}
    for i, transform in enumerate(pipeline):
        name = name_of(transform)
        if name not in readers:
            raise unsupported(what, name, tuple(readers))
        section = Section(transform, f"{what}[{i}] ({name})", MM_CALLER)
        section.no_effect("type", "backend_args", "_scope_")
        readers[name](section, found, notes)
        section.close()
    return found


def nothing(section: Section, found: dict[str, Any], notes: list[str]) -> None:
    """Read a transform that decodes or packs: nothing of it changes a value."""
    section.no_effect("to_float32", "color_type", "imdecode_backend", "meta_keys", "pack_transformed")


def read_statistics(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``mean`` and ``std`` of a model's ``data_preprocessor`` as shares of 255.

    Raises:
        ConfigError: the channels are not those of RGB.
    """
    values = model.get("data_preprocessor")
    section = Section(values or {}, "model.data_preprocessor", MM_CALLER)
    section.no_effect("type", "size", "size_divisor", "test_cfg", "pad_val", "seg_pad_val", "non_blocking")
    section.expect("batch_augments", None)
    section.expect("rgb_to_bgr", False)
    section.expect("bgr_to_rgb", True, default=False)
    mean, std = section.get("mean"), section.get("std")
    section.close()
    return {"mean": [round(m / 255, 10) for m in mean], "std": [round(s / 255, 10) for s in std]}


def read_optimizer(cfg: Section) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the optimizer section, and the fields of the loop that ``optim_wrapper`` has.

    Raises:
        ConfigError: another optimizer, wrapper or setting of parameters than a recipe has.
    """
    wrapper = cfg.section("optim_wrapper")
    kind = name_of(wrapper.get("type", "OptimWrapper"))
    if kind not in ("OptimWrapper", "AmpOptimWrapper"):
        raise unsupported("optim_wrapper", kind, ("OptimWrapper", "AmpOptimWrapper"))
    loop: dict[str, Any] = {"accumulate": wrapper.get("accumulative_counts", 1)}
    dtype = wrapper.get("dtype", None)
    wrapper.no_effect("loss_scale", "use_fsdp")
    if kind == "AmpOptimWrapper":
        loop["dtype"] = dtype or "float16"
    clip = wrapper.get("clip_grad", None)
    if clip:
        limits = Section(clip, "optim_wrapper.clip_grad", MM_CALLER)
        loop["clip_norm"] = limits.get("max_norm")
        limits.expect("norm_type", 2, 2.0)
        limits.close()
    wrapper.expect("constructor", None, "DefaultOptimWrapperConstructor")
    section = wrapper.section("optimizer")
    name = name_of(section.get("type"))
    kinds = {"Adam": "adam", "AdamW": "adamw", "SGD": "sgd"}
    if name not in kinds:
        raise unsupported("optim_wrapper.optimizer", name, tuple(kinds))
    found = {"kind": kinds[name], "lr": section.get("lr")}
    found["weight_decay"] = section.get("weight_decay", 0.01 if name == "AdamW" else 0.0)
    if name == "SGD":
        found |= {"momentum": section.get("momentum", 0.0), "nesterov": section.get("nesterov", False)}
    else:
        found["betas"] = section.get("betas", (0.9, 0.999))
        section.expect("eps", 1e-8)
        section.expect("amsgrad", False)
    section.close()
    found |= _parameters(wrapper)
    wrapper.close()
    return found, loop


def _parameters(wrapper: Section) -> dict[str, Any]:
    """Return the fields of ``paramwise_cfg``: decay of normalisations and biases, factors on biases and the head."""
    values = wrapper.get("paramwise_cfg", None)
    if not values:
        return {}
    section = Section(values, "optim_wrapper.paramwise_cfg", MM_CALLER)
    found: dict[str, Any] = {}
    decays = section.get("norm_decay_mult", 1), section.get("bias_decay_mult", 1)
    section.no_effect("bypass_duplicate")
    if decays not in ((1, 1), (0, 0), (1, 0)) or (decays == (1, 0) and "norm_decay_mult" in values):
        raise ConfigError(
            f"{MM_CALLER}: paramwise_cfg has norm_decay_mult={decays[0]} and bias_decay_mult={decays[1]}; a recipe has "
            "both 1, both 0, or bias_decay_mult=0 alone."
        )
    found["decay_norms"] = decays[0] == 1
    if decays == (1, 0):
        found["decay_biases"] = False
    if "bias_lr_mult" in values:
        found["bias_lr_factor"] = float(section.get("bias_lr_mult"))
    for key, options in section.get("custom_keys", {}).items():
        if key not in ("head", "decode_head", "keypoint_head") or set(options) != {"lr_mult"}:
            raise ConfigError(
                f"{MM_CALLER}: paramwise_cfg.custom_keys has {key}: {options}; a recipe has lr_mult of the head alone."
            )
        found["head_lr_factor"] = float(options["lr_mult"])
    section.close()
    return found


def read_schedule(cfg: Section, lr: float, total: int, by_epoch: bool) -> dict[str, Any]:
    """Return the schedule section.

    Args:
        cfg: the configuration.
        lr: of the optimizer, by which ``eta_min`` is divided.
        total: epochs or iterations of the run.
        by_epoch: which of them.

    Raises:
        ConfigError: schedules that do not begin with the run, or that no recipe has.
    """
    given = cfg.get("param_scheduler", ())
    found: dict[str, Any] = {"kind": "constant"}
    for i, values in enumerate([given] if isinstance(given, Mapping) else given):
        name = name_of(values)
        section = Section(values, f"param_scheduler[{i}] ({name})", MM_CALLER)
        section.no_effect("type", "verbose", "convert_to_iter_based")
        section.expect("begin", 0)
        epochs = section.get("by_epoch", True)
        if name == "LinearLR" and not epochs:
            # Its last factor, 1, is reached one iteration before its end.
            found |= {"warmup_iterations": section.get("end") - 1, "warmup_factor": section.get("start_factor", 1 / 3)}
            section.expect("end_factor", 1, 1.0)
        elif name == "ConstantLR" and not epochs:
            warmup = {"warmup_iterations": section.get("end") - 1, "warmup_factor": section.get("factor", 1 / 3)}
            found |= warmup | {"warmup_kind": "constant"}
        elif name == "MultiStepLR" and epochs:
            section.no_effect("end")
            milestones = [m for m in section.get("milestones") if m < total]
            found |= {"kind": "step", "milestones": milestones, "factor": section.get("gamma", 0.1)}
        elif name in ("PolyLR", "CosineAnnealingLR"):
            section.expect("end" if name == "PolyLR" else "T_max", total)
            section.no_effect("end")
            if epochs != by_epoch or (epochs and name == "PolyLR"):
                raise ConfigError(f"{MM_CALLER}: {section.path} has by_epoch={epochs}; a recipe decays by iteration.")
            found["least"] = section.get("eta_min", 0.0) / lr
            kind = "poly" if name == "PolyLR" else "cosine"
            found |= {"kind": kind} | ({"power": section.get("power", 1.0)} if kind == "poly" else {})
        else:
            accepted = ("LinearLR and ConstantLR by iteration", "MultiStepLR by epoch", "PolyLR", "CosineAnnealingLR")
            raise unsupported("param_scheduler", f"{name} (by_epoch={epochs})", accepted)
        section.close()
    return found


def read_loop(cfg: Section, images: int | None, batch: int, name: str) -> dict[str, Any]:
    """Return ``epochs`` and ``evaluate_every``, and for :func:`read_schedule` ``total`` and ``by_epoch``.

    Args:
        cfg: the configuration.
        images: pictures of the training set, or None where that is not known.
        batch: pictures of an update.
        name: of the data set, for messages.

    Raises:
        ConfigError: another loop than a recipe has, or iterations of an unknown number of pictures.
    """
    section = cfg.section("train_cfg")
    kind = name_of(section.get("type", "EpochBasedTrainLoop"))
    interval = section.get("val_interval", 1)
    section.no_effect("val_begin", "by_epoch")
    section.expect("dynamic_intervals", None)
    if kind == "EpochBasedTrainLoop":
        epochs = section.get("max_epochs")
        section.close()
        return {"epochs": epochs, "evaluate_every": interval, "total": epochs, "by_epoch": True}
    if kind != "IterBasedTrainLoop":
        raise unsupported("train_cfg", kind, ("IterBasedTrainLoop", "EpochBasedTrainLoop"))
    total = section.get("max_iters")
    section.close()
    if images is None:
        raise ConfigError(
            f"{MM_CALLER}: train_cfg has {total} iterations, and the number of pictures of {name} is not known; give "
            "train_images=."
        )
    each = max(1, images // batch)
    every = max(1, round(interval / each))
    return {"epochs": max(1, round(total / each)), "evaluate_every": every, "total": total, "by_epoch": False}
