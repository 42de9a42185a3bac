"""The sections of a recipe but optimizer and schedule: model, data, loop, evaluation. Each checks its fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hrnet_fast.errors import ConfigError, shown
from hrnet_fast.recipes.values import check_above_zero, check_choice, check_range, convert_section

DTYPES = ("float32", "bfloat16", "float16")
MEMORIES = ("fast", "lean", "min")
CHOICES = ("auto", "on", "off")
METRICS = ("coco", "pckh", "pck", "nme", "miou", "top_k", "detection_ap")
AVERAGES = ("logits", "exp")


@dataclass(frozen=True)
class ModelRecipe:
    """The network.

    Attributes:
        name: a name of :func:`hrnet_fast.list_models`, or ``""`` for a network of `options` alone; for detection one of
            :data:`hrnet_fast.detection.KINDS`.
        options: with a name, overrides of its configuration, as :func:`hrnet_fast.create_model` takes them; without
            one, arguments of :meth:`hrnet_fast.HRNetConfig.make`. ``stages`` and ``norm`` may be mappings.
            ``num_outputs`` comes from the data where it is not given. For detection, arguments of
            :func:`hrnet_fast.detection.make_detector_config`, and fields of its ``rpn``, ``roi`` and ``fcos`` as
            mappings; ``stages`` of ``roi`` is one mapping for all or a list with one for each.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        convert_section(self, "model")


@dataclass(frozen=True)
class DataRecipe:
    """The pictures: a layout of :mod:`hrnet_fast.datasets` in the folder that ``--data`` names.

    Attributes:
        layout: a reader: ``"coco_keypoints"``, ``"mpii"``, ``"deeplabcut"``, ``"cityscapes"``, ``"camvid"``,
            ``"mask_folders"``, ``"image_folder"``, ``"coco_instances"`` and so on.
        train, val: the reader's arguments for each part; paths are relative to the folder. Without `val` nothing is
            evaluated, unless `hold_out` is given.
        hold_out: every how many-th picture of the training list is kept for evaluation, for data without a part of its
            own; 0 keeps none. All samples of a picture stay together.
        workers: processes that decode, for each device.
        skip_broken: leave broken files out and count them, instead of raising.
        cache: ``"off"``, or how much of the decoded pictures a training run keeps in memory-mapped files, such as
            ``"8 GiB"``: later epochs, and persons of one picture, are not decoded again. All processes of a machine
            share it.
        cache_folder: these files are kept from run to run in its folder ``hrnet_fast_pictures``; None takes a temporary
            folder, removed at the end.
    """

    layout: str
    train: Mapping[str, Any]
    val: Mapping[str, Any] | None = None
    hold_out: int = 0
    workers: int = 4
    skip_broken: bool = False
    cache: str = "off"
    cache_folder: str | None = None

    def __post_init__(self) -> None:
        convert_section(self, "data")
        if not self.cache_bytes and self.cache_folder is not None:
            raise ConfigError(f"data.cache_folder={self.cache_folder!r} with data.cache=off; give data.cache a limit.")
        check_range("data.workers", self.workers, 0)
        check_range("data.hold_out", self.hold_out, 0)
        if self.hold_out == 1:
            raise ConfigError("data.hold_out=1 keeps every picture for evaluation; accepted are 0 and numbers from 2.")
        if self.hold_out and self.val is not None:
            raise ConfigError(f"data.hold_out={self.hold_out} beside data.val; give one of the two.")

    @property
    def cache_bytes(self) -> int:
        """The limit of `cache` in bytes, 0 for ``"off"``."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])iB", self.cache)
        limit = round(float(found[1]) * 2.0 ** {"M": 20, "G": 30, "T": 40}[found[2]]) if found else 0
        if self.cache != "off" and not limit:
            raise ConfigError(f"data.cache={shown(self.cache)}; accepted are 'off' and limits such as '8 GiB'.")
        return limit


@dataclass(frozen=True)
class LoopRecipe:
    """The loop.

    Attributes:
        epochs: passes over the training data.
        batch_size: pictures for each update, over all devices and micro-batches.
        accumulate: micro-batches for each update.
        clip_norm: largest norm of all gradients together, or None.
        dtype: of autocast: ``"float32"`` (none), ``"bfloat16"`` or ``"float16"``.
        channels_last: memory format of the network; None takes what is quicker on the device.
        ema: decay of an average of the weights, which is then evaluated and saved as well; None has none.
        sync_bn: normalise over all devices.
        accelerate: ``"auto"`` (where it pays), ``"on"`` or ``"off"``.
        memory: of :func:`hrnet_fast.accelerate`.
        graph: ``"auto"``, ``"on"`` or ``"off"``: the whole step as a CUDA graph
            (:class:`hrnet_fast.training.GraphedStep`).
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        keep_last_batch: whether an epoch's last, smaller batch is trained on; False drops it.
        seed: of weights, order, augmentation and dropout.
        deterministic: ask PyTorch for deterministic algorithms.
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    clip_norm: float | None = None
    dtype: str = "float32"
    channels_last: bool | None = None
    ema: float | None = None
    sync_bn: bool = False
    accelerate: str = "auto"
    memory: str = "lean"
    graph: str = "auto"
    evaluate_every: int = 1
    keep_last_batch: bool = True
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        convert_section(self, "loop")
        for name in ("epochs", "batch_size", "accumulate", "evaluate_every"):
            check_range(f"loop.{name}", getattr(self, name), 1)
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"loop.batch_size={self.batch_size} is no multiple of loop.accumulate={self.accumulate}; a batch is "
                "cut into micro-batches of one size."
            )
        check_above_zero("loop.clip_norm", self.clip_norm)
        check_range("loop.ema", self.ema, 0, 1, open_end=True)
        check_range("loop.seed", self.seed, 0)
        check_choice("loop.dtype", self.dtype, DTYPES)
        check_choice("loop.memory", self.memory, MEMORIES)
        for name in ("accelerate", "graph"):
            check_choice(f"loop.{name}", getattr(self, name), CHOICES)


@dataclass(frozen=True)
class EvaluationRecipe:
    """How a network is evaluated; fields that a task or another field leaves unused must keep their default.

    Attributes:
        flip: average with the mirrored picture.
        shift: move flipped-back heatmaps by one pixel, with `flip`; None as the network's method asks (keypoints).
        decode: method of decoding heatmaps (keypoints); None takes that of ``inputs.method``.
        scales: of the multi-scale test (segmentation).
        base_size: longer side in pixels at scale 1; None takes the picture's own (segmentation).
        window: (H, W) of a sliding window for pictures larger than it, or None: whole pictures (segmentation).
        stride: share of `window` by which it moves (segmentation): 1 on the authors' Cityscapes, 2/3 on their others.
        pad_windows: smaller pictures and the last windows are padded with black to the window, as in the authors'
            PASCAL-Context; otherwise such pictures run whole and the last windows overlap more, as in their Cityscapes
            (segmentation).
        average: what is averaged over scales and mirror images: ``"logits"`` or ``"exp"``, the authors' (segmentation).
        size: (H, W) that pictures are resized to before the network, or None (segmentation).
        whole_pixels: points in the picture are cut to whole pixels and counted from 1, as in the authors' face code
            (keypoints).
        detections: a file of a detector's boxes, relative to the data folder; None takes annotated boxes (COCO).
        metric: ``"coco"``, ``"pckh"``, ``"pck"``, ``"nme"``, ``"miou"``, ``"top_k"`` or ``"detection_ap"``.
        metric_options: arguments of the metric in :mod:`hrnet_fast.metrics`.
        best: the figure that chooses the best checkpoint; "" takes the metric's first.
        batch_size: pictures for each call; None takes the loop's.
    """

    metric: str
    flip: bool = False
    shift: bool | None = None
    decode: str | None = None
    scales: tuple[float, ...] = (1.0,)
    base_size: int | None = None
    window: tuple[int, int] | None = None
    stride: float = 1.0
    pad_windows: bool = False
    average: str = "logits"
    size: tuple[int, int] | None = None
    whole_pixels: bool = False
    detections: str | None = None
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    best: str = ""
    batch_size: int | None = None

    def __post_init__(self) -> None:
        convert_section(self, "evaluation")
        check_choice("evaluation.metric", self.metric, METRICS)
        check_choice("evaluation.average", self.average, AVERAGES)
        if not self.scales:
            raise ConfigError("evaluation.scales=[]; accepted are one or more factors.")
        for scale in self.scales:
            check_above_zero("evaluation.scales", scale)
        check_above_zero("evaluation.stride", self.stride)
        check_range("evaluation.stride", self.stride, 0, 1)
        for name in ("base_size", "batch_size"):
            check_range(f"evaluation.{name}", getattr(self, name), 1)
        for name in ("window", "size"):
            for side in getattr(self, name) or ():
                check_range(f"evaluation.{name}", side, 1)
