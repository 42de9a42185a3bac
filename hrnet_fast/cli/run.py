"""The command ``run``, which runs a checkpoint on images and writes JSON and pictures."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hrnet_fast.cli.console import (
    impl_option,
    json_option,
    print_json,
    progress,
    show_notes,
    torch04_option,
    weights_option,
)
from hrnet_fast.cli.option_values import parse_box, parse_size
from hrnet_fast.errors import InputError

if TYPE_CHECKING:
    from hrnet_fast.detection import Detector
    from hrnet_fast.models import HRNet
    from hrnet_fast.tasks.prediction import Network

# Repeated here so that --help imports no torch.
TASK_NAMES = ("pose", "segmentation", "classification", "landmarks", "detection")
DECODINGS = ("msra", "dark", "udp", "face")
# From this number of images on, an engine saves more than its set-up takes (a second or two).
ENGINE_PAYS = 20


@click.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--checkpoint", "-c", required=True, type=click.Path(path_type=Path), help="A file of any family.")
@click.option("--task", "-t", required=True, type=click.Choice(TASK_NAMES))
@click.option("--output", "-o", default=Path("hrnet_output"), show_default=True, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace existing results in the output folder.")
@click.option("--size", default=None, help="Input HxW of the network; the default depends on the task.")
@click.option("--box", "boxes", multiple=True, help="left,top,width,height of a person or face; may be repeated.")
@click.option("--flip", is_flag=True, help="Average with the mirrored image.")
@click.option("--labels", type=click.Path(path_type=Path), help="A text file with one class name per line.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Number of classes to return.")
@click.option("--threshold", default=0.2, show_default=True, help="Keypoints and objects below this are not drawn.")
@click.option("--decode", type=click.Choice(DECODINGS), help="Method to decode heatmaps; the family's by default.")
@click.option("--family", default="auto", show_default=True, help="The checkpoint's family.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "on", "off"]),
    help=f"Use an inference engine; auto: from {ENGINE_PAYS} images on, or with --dtype.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Dtype of the engine's computation."
)
@click.option(
    "--align-corners/--no-align-corners",
    default=None,
    help="Mode of the network's bilinear interpolation; the family's by default, since files do not contain it.",
)
@click.option(
    "--in-channels",
    type=click.Choice(["1", "3", "4"]),
    help="Adapt an RGB checkpoint to 1 (grey) or 4 (RGBA) channels, as timm does; the file's by default.",
)
@weights_option
@torch04_option
@impl_option
@json_option
def run(
    images: Path,
    checkpoint: Path,
    task: str,
    output: Path,
    force: bool,
    size: str | None,
    boxes: tuple[str, ...],
    flip: bool,
    labels: Path | None,
    top: int,
    threshold: float,
    decode: str | None,
    family: str,
    engine: str,
    dtype: str | None,
    align_corners: bool | None,
    in_channels: str | None,
    weights: str,
    torch04: bool,
    impl: str,
    as_json: bool,
) -> None:
    """Run a checkpoint on IMAGES (a file or a folder); write NAME.json and NAME.png for each into the output folder."""
    from hrnet_fast.tasks import TASKS, Options
    from hrnet_fast.tasks.images import find_images, read_image
    from hrnet_fast.tasks.prediction import all_assumptions

    show_notes()
    chosen = TASKS[task]
    optional = (*(field.name for field in dataclasses.fields(Options)), "align_corners", "in_channels")
    _check_options(task, (*chosen.options, *chosen.network), optional)
    options = Options(
        size=parse_size(size) if size else None,
        boxes=tuple(parse_box(b) for b in boxes),
        flip=flip,
        labels=_read_labels(labels) if labels else (),
        top=top,
        threshold=threshold,
        decode=decode,
    )
    paths = find_images(images)
    if not force:
        endings = ("json", "png", *(f"{name}.png" for name in chosen.maps))
        _check_absent([output / f"{path.name}.{ending}" for path in paths for ending in endings])
    given = {"decode": decode, "align_corners": align_corners, "in_channels": in_channels and int(in_channels)}
    model = _load_model(checkpoint, task, given, family=family, weights=weights, torch04=torch04, impl=impl)
    network = make_network(model, engine, dtype, impl, many=len(paths) >= ENGINE_PAYS)
    _make_folder(output)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    for path in progress(paths, len(paths), task):
        try:
            prediction = chosen.predict(network, read_image(path, model.config.in_channels), options)
        except InputError as error:
            if len(paths) == 1:
                raise
            failures.append(str(error))
            continue
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error}).") from error
        result = {
            "image": str(path),
            "task": task,
            "family": model.family,
            "ran": describe_execution(network, impl),
            **prediction.data,
        }
        stem = output / path.name
        try:
            prediction.picture.save(f"{stem}.png")
            for name, image in prediction.maps.items():
                image.save(f"{stem}.{name}.png")
            text = json.dumps(result, indent=2, allow_nan=False)
            Path(f"{stem}.json").write_text(text + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{stem}: the answer cannot be written ({error}).") from error
        results.append(result)
    for line in all_assumptions(model):
        click.echo(line, err=True)
    if as_json:
        print_json(results)
    else:
        ran = describe_execution(network, impl)
        click.echo(f"{len(results)} of {len(paths)} images done ({ran}); JSON and pictures are in {output}/")
    if failures:
        raise InputError(f"{len(failures)} of {len(paths)} images failed: {'; '.join(failures[:5])}")


def _load_model(checkpoint: Path, task: str, given: dict[str, Any], **how: Any) -> HRNet | Detector:
    """Return the checkpoint's network for `task`, with the settings in `given` that are not None."""
    from hrnet_fast.checkpoints import load_checkpoint
    from hrnet_fast.tasks import TASKS
    from hrnet_fast.tasks.prediction import check_head

    overrides = {name: value for name, value in given.items() if value is not None}
    model: HRNet | Detector = load_checkpoint(checkpoint, **how, **overrides)
    check_head(model, TASKS[task].heads, task, checkpoint)
    return model


def make_network(model: HRNet | Detector, engine: str, dtype: str | None, impl: str, *, many: bool) -> Network:
    """Return the model, or an engine if it was requested or saves time: `many` images of one size are to come."""
    import torch

    from hrnet_fast.implementations import ENV_VAR
    from hrnet_fast.tasks.engine_runner import EngineRunner

    if engine == "off" and dtype is not None:
        raise InputError(f"--dtype {dtype} applies to the engine; leave out --engine off.")
    wanted = engine == "on" or dtype is not None
    if wanted and impl != "auto":
        raise InputError(f"--impl {impl} applies to the model; leave it out, or give --engine off.")
    # A named implementation is of the model, not of an engine.
    named = impl != "auto" or os.environ.get(ENV_VAR, "auto") != "auto"
    if not wanted and (engine == "off" or named or not many):
        return model
    return EngineRunner(model, getattr(torch, dtype or "float32"), or_model=not wanted)


def describe_execution(network: Network, impl: str) -> str:
    """Return one line on what ran."""
    from hrnet_fast.tasks.engine_runner import EngineRunner

    return network.describe() if isinstance(network, EngineRunner) else f"model, impl={impl!r}"


def _check_options(task: str, heeded: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Raise InputError for options on the command line that the task does not use."""
    context = click.get_current_context()
    flags = {p.name: p.opts[0] for p in context.command.params if p.name in optional}
    idle = [
        flag
        for name, flag in flags.items()
        if name not in heeded and context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if idle:
        read = ", ".join(flag for name, flag in flags.items() if name in heeded)
        raise InputError(f"{task} does not use {', '.join(idle)}; leave it out. It uses {read}.")


def _check_absent(files: list[Path]) -> None:
    old = [file for file in files if os.path.exists(file)]
    if old:
        more = f" and {len(old) - 1} more" if len(old) > 1 else ""
        raise InputError(f"{old[0]}{more}: existing results; give another --output, or --force to replace them.")


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of labels ({error}).") from error
    if not found:
        raise InputError(f"{path}: has no labels; a file with one class name per line is accepted.")
    return found


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a folder ({error}).") from error
