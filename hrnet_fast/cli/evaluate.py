"""The command ``eval``, which evaluates a checkpoint of any family by a recipe's protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrnet_fast.cli.console import (
    impl_option,
    json_option,
    print_json,
    print_table,
    show_notes,
    torch04_option,
    weights_option,
)
from hrnet_fast.cli.option_values import parse_size
from hrnet_fast.cli.recipe_options import find_recipe, recipe_options
from hrnet_fast.cli.run import DECODINGS, describe_execution, make_network
from hrnet_fast.errors import InputError

if TYPE_CHECKING:
    from hrnet_fast.detection import Detector
    from hrnet_fast.models import HRNet
    from hrnet_fast.recipes import Recipe
    from hrnet_fast.trainer.recipe_task import RecipeTask


@click.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The folder of the data.")
@click.option("--recipe", help="Name or YAML file of the protocol; by default that of the checkpoint's run folder.")
@recipe_options
@click.option("--flip/--no-flip", default=None, help="Average with the mirrored picture.")
@click.option("--decode", type=click.Choice(DECODINGS), help="Method to decode heatmaps.")
@click.option(
    "--detections", type=click.Path(), help="A file in the data folder with a detector's boxes in COCO's result format."
)
@click.option("--scales", help="Factors of the multi-scale test, such as 0.5,1,1.5.")
@click.option("--window", help="HxW of the sliding window for larger pictures.")
@click.option("--size", help="HxW that pictures are resized to before the network (segmentation).")
@click.option("--average", type=click.Choice(["logits", "exp"]), help="What is averaged over scales and mirror images.")
@click.option("--batch-size", type=click.IntRange(1), help="Pictures for each call.")
@click.option("--workers", type=click.IntRange(0), help="Processes that decode pictures.")
@click.option("--skip-broken", is_flag=True, help="Leave broken files out and count them.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1; auto: cuda where there is one.")
@click.option(
    "--engine", default="auto", show_default=True, type=click.Choice(["auto", "on", "off"]),
    help="Use an inference engine; auto: where all pictures have one size, or with --dtype.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Dtype of the engine's computation."
)
@click.option("--family", default="auto", show_default=True, help="The checkpoint's family.")
@click.option(
    "--align-corners/--no-align-corners", default=None,
    help="Mode of the network's bilinear interpolation; the family's by default, since files do not contain it.",
)  # fmt: skip
@click.option(
    "--output", "-o", type=click.Path(path_type=Path),
    help="A JSON file to write, with every sample's answer; of detections, COCO's list of results.",
)  # fmt: skip
@weights_option
@torch04_option
@impl_option
@json_option
def evaluate(
    checkpoint: Path,
    data: Path,
    recipe: str | None,
    authors_yaml: Path | None,
    openmmlab: Path | None,
    settings: tuple[str, ...],
    flip: bool | None,
    decode: str | None,
    detections: str | None,
    scales: str | None,
    window: str | None,
    size: str | None,
    average: str | None,
    batch_size: int | None,
    workers: int | None,
    skip_broken: bool,
    device: str,
    engine: str,
    dtype: str | None,
    family: str,
    align_corners: bool | None,
    output: Path | None,
    weights: str,
    torch04: bool,
    impl: str,
    as_json: bool,
) -> None:
    """Evaluate CHECKPOINT, of any family, on the validation part of the data.

    Runs on one device, or on several under `torchrun -m hrnet_fast.cli eval ...`.
    """
    show_notes()
    found = find_recipe(recipe, authors_yaml, openmmlab, settings, checkpoint.parent)
    options = {
        "flip": flip, "decode": decode, "detections": detections, "average": average, "batch_size": batch_size,
        "scales": None if scales is None else f"[{scales}]",
        "window": None if window is None else list(parse_size(window)),
        "size": None if size is None else list(parse_size(size)),
    }  # fmt: skip
    changes = [f"evaluation.{name}={_yaml(value)}" for name, value in options.items() if value is not None]
    changes += [] if workers is None else [f"data.workers={workers}"]
    changes += ["data.skip_broken=true"] if skip_broken else []
    found = found.override(*changes) if changes else found
    if output is not None and output.exists():
        raise InputError(f"{output} exists already; give another --output.")
    if output is not None and not output.parent.is_dir():
        raise InputError(f"{output}: the folder {output.parent} is missing; make it, or give another --output.")

    import torch

    from hrnet_fast.cli.train import chosen_device
    from hrnet_fast.trainer.processes import joined_processes

    with joined_processes(chosen_device(device)) as processes:
        if processes.count > 1 and processes.device.type == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // processes.count))
        task = validation_task(found, data, str(processes.device))
        how = {"family": family, "weights": weights, "torch04": torch04, "impl": impl}
        model = load_network(checkpoint, task, align_corners, how).to(processes.device)
        network = make_network(model, engine, dtype, impl, many=one_size(found))
        begin = time.perf_counter()
        with sample_bar(processes.first) as progress:
            result = task.evaluate(network, processes.device, progress=progress)
        seconds = time.perf_counter() - begin
        samples = [sample for part in processes.gathered(result.samples) for sample in part]
        if not processes.first:
            return
    about = {
        "checkpoint": str(checkpoint), "family": model.family, "data": str(data), "count": result.count,
        "skipped": result.skipped, "seconds": round(seconds, 2), "ran": describe_execution(network, impl),
        "figures": dict(result.figures), "evaluation": found.to_dict()["evaluation"],
    }  # fmt: skip
    for line in model.assumptions:
        click.echo(line, err=True)
    if as_json:
        print_json(about)
    else:
        print_table(("figure", "value>"), [(name, f"{value:.4f}") for name, value in result.figures.items()])
        speed = result.count / seconds if seconds else 0.0
        click.echo(f"{result.count} samples, {result.skipped} skipped; {speed:.1f} a second ({about['ran']})")
    if output is not None:  # behind the figures, which a full disk then does not lose
        if found.task == "detection":  # the list that COCO's tools and servers read
            _write(output, [entry for sample in samples for entry in sample.answer["detections"]])
        else:
            _write(output, about | {"samples": [dataclasses.asdict(sample) for sample in samples]})


def validation_task(recipe: Recipe, data: Path, device: str) -> RecipeTask:
    """Return the task of a recipe without its training data, which need not be there.

    Raises:
        InputError: the recipe evaluates nothing.
    """
    from hrnet_fast.trainer.build_task import build_task

    section, loop = recipe.data, dataclasses.replace(recipe.loop, keep_last_batch=True)
    if section.val is None and not section.hold_out:
        raise InputError("the recipe has no data for evaluation; --set data.val={...} or data.hold_out=N names it.")
    if section.val is not None:
        section = dataclasses.replace(section, train=section.val)
    evaluation = dataclasses.replace(recipe.evaluation, best="")  # of training: an option may take the figure away
    return build_task(dataclasses.replace(recipe, data=section, loop=loop, evaluation=evaluation), data, device=device)


def load_network(
    checkpoint: Path, task: RecipeTask, align_corners: bool | None, how: dict[str, Any]
) -> HRNet | Detector:
    """Return the checkpoint's network, whose heatmaps are decoded as the recipe says.

    A detector takes the recipe's settings where it is the recipe's; otherwise those of its file or its family, with the
    recipe's size of pictures. ``legacy=True`` of the file or of the recipe applies in both cases.

    Raises:
        InputError: its head is none of the task's, or it has another number of outputs than the data.
    """
    from hrnet_fast.checkpoints import load_checkpoint

    overrides: dict[str, Any] = {} if align_corners is None else {"align_corners": align_corners}
    if task.recipe.task == "detection":
        return _load_detector(checkpoint, task, how | overrides)
    if task.recipe.task in ("pose", "landmarks"):
        overrides["decode"] = task.recipe.evaluation.decode or task.keypoints
    try:
        model: HRNet = load_checkpoint(checkpoint, **how, **overrides)
    except InputError:  # a network without heatmaps takes no decode: its head is what the user has to be told
        overrides.pop("decode", None)
        _check_outputs(checkpoint, load_checkpoint(checkpoint, **how, **overrides), task)
        raise
    _check_outputs(checkpoint, model, task)
    return model


def _load_detector(checkpoint: Path, task: RecipeTask, how: dict[str, Any]) -> Detector:
    from hrnet_fast.checkpoints import load_checkpoint
    from hrnet_fast.checkpoints.infer_detector import detector_shapes
    from hrnet_fast.detection import Detector

    model = load_checkpoint(checkpoint, **how)
    if not isinstance(model, Detector):
        raise InputError(f"{checkpoint}: a {model.config.head.kind} head cannot do detection; that takes a detector.")
    if model.config.num_classes != len(task.outputs):  # type: ignore[arg-type]
        wanted = len(task.outputs)  # type: ignore[arg-type]
        raise InputError(
            f"{checkpoint}: has {model.config.num_classes} outputs and the data {wanted}; they must be equal."
        )
    own, picture = task.config, task.config.picture
    fits = own.kind == model.config.kind and detector_shapes(own) == detector_shapes(model.config)
    if fits:
        config = own.override(legacy=own.legacy or model.config.legacy)
    else:
        config = model.config.override(long_side=picture.long_side, short_side=picture.short_side)
    made = Detector(config, impl=how["impl"])
    made.load_state_dict(model.state_dict())
    made.set_origin(model.family or "", model.notes, () if fits else model.assumptions)
    return made.eval()


def _check_outputs(checkpoint: Path, model: HRNet, task: RecipeTask) -> None:
    """Raise InputError unless a network's head is one of the task's, with as many outputs as the data has."""
    from hrnet_fast.detection import DetectorConfig
    from hrnet_fast.recipes.model_options import HEADS_OF_TASK

    kind = task.recipe.task
    heads = HEADS_OF_TASK[kind]
    if isinstance(model.config, DetectorConfig):
        raise InputError(f"{checkpoint}: a detector cannot do {kind}; that takes {' or '.join(heads)}.")
    head = model.config.head
    if head.kind not in heads:
        raise InputError(f"{checkpoint}: a {head.kind} head cannot do {kind}; that takes {' or '.join(heads)}.")
    wanted = task.outputs if isinstance(task.outputs, int) else len(task.outputs)
    if head.num_outputs != wanted:
        raise InputError(f"{checkpoint}: has {head.num_outputs} outputs and the data {wanted}; they must be equal.")


def one_size(recipe: Recipe) -> bool:
    """Whether a network's inputs have one size: an engine prepares each size anew."""
    evaluation = recipe.evaluation
    if recipe.task == "detection":
        return False
    return recipe.task != "segmentation" or (evaluation.size is not None and len(evaluation.scales) == 1)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value.startswith("[") else json.dumps(value)


@contextlib.contextmanager
def sample_bar(shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of the samples done and their number that moves a bar on standard error, if it is a terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        row = progress.add_task("evaluation", total=None)
        yield lambda done, total: progress.update(row, completed=done, total=total)


def _write(path: Path, content: Any) -> None:
    from hrnet_fast.trainer.records import as_json
    from hrnet_fast.whole_files import written_whole

    try:
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(as_json(content), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}).") from error
