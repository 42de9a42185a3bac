"""The dataclass ``Recipe`` and its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelRecipe:
    """The network.

    Attributes:
        name: a name of :func:`hrnet_fast.list_models`.
        options: overrides of its configuration, as :func:`hrnet_fast.create_model` takes them. ``num_outputs`` comes
            from the data where it is not given.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataRecipe:
    """The pictures: a layout of :mod:`hrnet_fast.datasets` in the folder that ``--data`` names.

    Attributes:
        layout: a reader: ``"coco_keypoints"``, ``"mpii"``, ``"deeplabcut"``, ``"cityscapes"``, ``"camvid"``,
            ``"mask_folders"``, ``"image_folder"`` and so on.
        train, val: what the reader needs for each part, relative to the folder: a split's name or the reader's
            arguments. Without `val` nothing is evaluated.
        workers: processes that decode, for each device.
        skip_broken: leave broken files out and count them, instead of raising.
    """

    layout: str
    train: Mapping[str, Any]
    val: Mapping[str, Any] | None = None
    workers: int = 4
    skip_broken: bool = False


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimizer.

    Attributes:
        kind: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        lr: the learning rate for a whole global batch.
        weight_decay: the authors' pose configurations name one that their code never gives to Adam: 0 here.
        momentum, nesterov: of SGD.
        betas: of Adam.
        head_lr_factor: factor on the head's learning rate (segmentation's ``NONBACKBONE_MULT``).
        decay_norms: whether normalisations and biases decay too, as in the authors' code.
    """

    kind: str
    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    head_lr_factor: float = 1.0
    decay_norms: bool = True


@dataclass(frozen=True)
class ScheduleRecipe:
    """The learning rate over time: a factor on the optimizer's, after a linear warm-up.

    Attributes:
        kind: ``"step"`` (times `factor` at each of `milestones`, in epochs), ``"poly"`` ((1 - t / T)^power by
            iteration), ``"cosine"`` (by iteration, to 0) or ``"constant"``.
        milestones, factor: of ``"step"``.
        power: of ``"poly"``.
        warmup_iterations, warmup_factor: the factor grows linearly from `warmup_factor` to 1.
    """

    kind: str = "step"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    power: float = 0.9
    warmup_iterations: int = 0
    warmup_factor: float = 0.001


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


@dataclass(frozen=True)
class EvaluationRecipe:
    """How a network is evaluated; fields that a task does not use must keep their default.

    Attributes:
        flip: average with the mirrored picture.
        shift: move flipped-back heatmaps by one pixel; None as the network's method asks (keypoints).
        decode: method of decoding heatmaps (keypoints).
        scales: of the multi-scale test (segmentation).
        base_size: longer side in pixels at scale 1; None takes the picture's own (segmentation).
        window: (H, W) of a sliding window for pictures larger than it, or None: whole pictures (segmentation).
        stride: share of the window by which it moves (segmentation): 1 on the authors' Cityscapes, 2/3 on their others.
        pad_windows: smaller pictures and the last windows are padded with black to the window, as in the authors'
            PASCAL-Context; otherwise such pictures run whole and the last windows overlap more, as in their Cityscapes
            (segmentation).
        average: what is averaged over scales and mirror images: ``"logits"`` or ``"exp"``, the authors' (segmentation).
        size: (H, W) that pictures are resized to before the network, or None (segmentation).
        whole_pixels: points in the picture are cut to whole pixels and counted from 1, as in the authors' face code
            (keypoints).
        detections: a file of a detector's boxes, relative to the data folder; None takes annotated boxes (COCO).
        metric: ``"coco"``, ``"pckh"``, ``"pck"``, ``"nme"``, ``"miou"`` or ``"top_k"``.
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


@dataclass(frozen=True)
class Recipe:
    """How a network is trained and evaluated.

    Attributes:
        task: ``"pose"``, ``"landmarks"``, ``"segmentation"`` or ``"classification"``.
        description: one line, with the source.
        inputs: arguments of the task's input pipeline: fields of :class:`hrnet_fast.datasets.KeypointCrops`
            (``augmentation`` and ``colors`` as mappings of their fields), of
            :class:`hrnet_fast.datasets.SegmentationCrops`, or of the classification pipeline.
        loss: ``kind`` and the arguments of a loss in :mod:`hrnet_fast.training.losses`.
    """

    task: str
    description: str
    model: ModelRecipe
    data: DataRecipe
    inputs: Mapping[str, Any]
    loss: Mapping[str, Any]
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe
    loop: LoopRecipe
    evaluation: EvaluationRecipe
