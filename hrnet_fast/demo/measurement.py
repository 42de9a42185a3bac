"""Measures every contender on the network of every task."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hrnet_fast.checkpoints import load_checkpoint, parse_checkpoint
from hrnet_fast.demo.contenders import contenders, engine_of
from hrnet_fast.demo.pictures import picture_of
from hrnet_fast.demo.random_weights import random_weights
from hrnet_fast.doctor import device_name
from hrnet_fast.errors import HRNetFastError
from hrnet_fast.keypoints import fit_box
from hrnet_fast.measure import InterleavedTimer, error_limit, operator_calls, peak_activations, relative_error
from hrnet_fast.models import HRNet, get_config
from hrnet_fast.tasks import TASKS
from hrnet_fast.tasks.images import crop, read_image, to_tensor
from hrnet_fast.tasks.prediction import check_head


@dataclass(frozen=True)
class DemoTask:
    """A network of the demonstration, the family of its checkpoint, and its input's (H, W)."""

    model: str
    family: str
    input_size: tuple[int, int]


DEMO_TASKS: dict[str, DemoTask] = {
    "pose": DemoTask("hrnetv1_w32_pose", "mmpose", (256, 192)),
    "segmentation": DemoTask("hrnetv2_w48_seg", "seg", (512, 512)),
    "classification": DemoTask("hrnet_w18_c", "timm", (224, 224)),
    "detection": DemoTask("hrnetv2p_w32_det", "mmdet", (512, 512)),
}


@dataclass(frozen=True)
class Measurement:
    """One contender on one network, one image.

    Attributes:
        error: relative L2 distance to the same network in float64.
        seconds: median latency of the interleaved rounds.
        launches: operators dispatched in one call; of an engine, its steps.
        peak_bytes: most bytes of activations alive at once.
        setup_seconds: seconds of preparation, a copy of the weights included.
    """

    contender: str
    implementation: str
    dtype: str
    error: float
    seconds: float
    launches: int
    peak_bytes: int
    setup_seconds: float


@dataclass(frozen=True)
class TaskResult:
    """One task's network on the photograph."""

    task: str
    model: str
    family: str
    random_weights: bool
    weights: str
    image_name: str
    input_size: tuple[int, int]
    parameters: int
    device: str
    rounds: int
    measurements: tuple[Measurement, ...]
    picture: Image.Image

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the picture as plain data."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "picture"}
        return fields | {"measurements": [dataclasses.asdict(m) for m in self.measurements]}


def demo_image(path: Path | None) -> tuple[Image.Image, str]:
    """Return the photograph and its name; without `path` NASA's portrait of Eileen Collins, in the public domain."""
    if path is not None:
        return read_image(path), path.name
    with resources.as_file(resources.files("hrnet_fast").joinpath("data/astronaut.jpg")) as file:
        return read_image(file), "astronaut.jpg (NASA, public domain)"


def run_demo(
    tasks: Sequence[str], *, image: Path | None, checkpoints: Mapping[str, Path], rounds: int = 5
) -> Iterator[TaskResult]:
    """Yield the result of each task in turn.

    Args:
        tasks: names in :data:`DEMO_TASKS`.
        image: a photograph, or None for the one in the package.
        checkpoints: trained weights by task, read before the first task is measured. Tasks without one run on random
            weights, which is reported.
        rounds: timed rounds, in each of which every contender runs once.

    Raises:
        InputError: an unreadable image, or a checkpoint whose head cannot do its task.
        CheckpointError: an unreadable checkpoint.
    """
    photo, name = demo_image(image)
    trained = {task: _trained(task, checkpoints[task]) for task in tasks if task in checkpoints}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for task in tasks:
        if task in trained:
            yield _measure_task(task, photo, name, trained[task], checkpoints[task].name, rounds, device)
        else:
            yield _measure_task(task, photo, name, _random(task), None, rounds, device)


def _trained(task: str, checkpoint: Path) -> HRNet:
    # The demo measures backbone and pyramid: of a detector's file these alone are loaded.
    family = "mmdet" if parse_checkpoint(checkpoint).detector is not None else "auto"
    model = load_checkpoint(checkpoint, family=family)
    assert isinstance(model, HRNet)
    own = get_config(DEMO_TASKS[task].model).head.kind
    heads = TASKS[task].heads if own in TASKS[task].heads else (own,)
    check_head(model, heads, task, checkpoint)
    return model


def _random(task: str) -> HRNet:
    entry = DEMO_TASKS[task]
    model = load_checkpoint(random_weights(get_config(entry.model), entry.family))
    assert isinstance(model, HRNet)
    return model


def _measure_task(
    task: str,
    photo: Image.Image,
    image_name: str,
    model: HRNet,
    weights: str | None,
    rounds: int,
    device: torch.device,
) -> TaskResult:
    entry = DEMO_TASKS[task]
    model = model.to(device)  # contenders get copies
    x = _input(photo, entry.input_size).to(device)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()(x.double())
        measurements = _measure_contenders(model, x, exact, rounds)
        picture = picture_of(task, model, photo)
    return TaskResult(
        task=task,
        model=entry.model if weights is None else f"W{model.config.out_channels[0]} {model.config.head.kind}",
        family=model.family or "",
        random_weights=weights is None,
        weights=weights or "random",
        image_name=image_name,
        input_size=entry.input_size,
        parameters=sum(p.numel() for p in model.parameters()),
        device=device_name(device),
        rounds=rounds,
        measurements=measurements,
        picture=picture,
    )


def _measure_contenders(model: HRNet, x: Tensor, exact: Any, rounds: int) -> tuple[Measurement, ...]:
    chosen = contenders(x.device)
    calls, setup = {}, {}
    for c in chosen:
        start = time.perf_counter()
        calls[c.name] = c.prepare(copy.deepcopy(model), x, c.dtype)
        setup[c.name] = time.perf_counter() - start
    errors = {name: relative_error(call(), exact) for name, call in calls.items()}
    for c in chosen:  # a wrong result gets no time
        own = next(errors[r.name] for r in chosen if r.implementation == "reference" and r.dtype == c.dtype)
        # In float32 PyTorch's channels-last kernels may round more than twice as much as the contiguous ones.
        if not errors[c.name] <= error_limit(own, c.dtype, roundings=2):
            raise HRNetFastError(
                f"the error of {c.name} is {errors[c.name]:.1e}, that of the reference {own:.1e}: please report this."
            )
    timer = InterleavedTimer(calls, x.device)
    for _ in range(1 + rounds):
        timer.round()
    measurements = []
    for c in chosen:
        engine = engine_of(calls[c.name])
        measurements.append(
            Measurement(
                contender=c.name,
                implementation=c.implementation,
                dtype=str(c.dtype).removeprefix("torch."),
                error=errors[c.name],
                seconds=statistics.median(timer.times[c.name][1:]),
                launches=engine.plan().launches() if engine else operator_calls(calls[c.name]),
                peak_bytes=engine.memory() if engine else peak_activations(calls[c.name]),
                setup_seconds=setup[c.name],
            )
        )
    return tuple(measurements)


def _input(photo: Image.Image, size: tuple[int, int]) -> Tensor:
    whole = fit_box((0.0, 0.0, float(photo.width), float(photo.height)), size, 1.0)
    return to_tensor(crop(photo, whole, size))
