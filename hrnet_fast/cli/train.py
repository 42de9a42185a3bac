"""The command ``train``, which trains a network by a recipe and writes a run's folder with its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrnet_fast.cli.console import json_option, print_json, show_notes
from hrnet_fast.cli.recipe_options import find_recipe, recipe_options
from hrnet_fast.errors import HRNetFastError, InputError

if TYPE_CHECKING:
    from hrnet_fast.evaluation import EvaluationResult
    from hrnet_fast.trainer import TrainingOutcome
    from hrnet_fast.trainer.recipe_task import RecipeTask


@click.command()
@click.argument("recipe", required=False)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The folder of the data.")
@click.option("--init", type=click.Path(path_type=Path), help="A checkpoint of any family for the first weights.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder; runs/ and the recipe's name by default."
)
@recipe_options
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its recipe is taken where none is given.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1; auto: cuda where there is one.")
@click.option("--skip-broken", is_flag=True, help="Leave broken files out and count them.")
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard into the run's folder as well.")
@click.option("--log-every", default=50, show_default=True, type=click.IntRange(1), help="Updates between two records.")
@json_option
def train(
    recipe: str | None,
    data: Path,
    init: Path | None,
    out: Path | None,
    authors_yaml: Path | None,
    openmmlab: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    device: str,
    skip_broken: bool,
    tensorboard: bool,
    log_every: int,
    as_json: bool,
) -> None:
    """Train a network by RECIPE: a name of `recipe list`, or a YAML file's path.

    Runs on one device, or on several under `torchrun -m hrnet_fast.cli train ...`. Ctrl-C and SIGTERM save the state;
    --resume goes on from there.
    """
    show_notes()
    if resume and out is None:
        raise InputError("--resume needs --out, the folder of the run that goes on.")
    found = find_recipe(recipe, authors_yaml, openmmlab, settings, out if resume else None)
    if skip_broken:
        found = found.override("data.skip_broken=true")
    folder = out or Path("runs") / run_name(recipe or str(authors_yaml or openmmlab))

    from hrnet_fast.trainer import Callback, TensorBoard
    from hrnet_fast.trainer import train as run_training
    from hrnet_fast.trainer.build_task import build_task

    named = chosen_device(device)
    task = build_task(found, data, device=own_device(named), init=init)
    callbacks: list[Callback] = []
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        from hrnet_fast.cli.training_bar import TrainingBar

        if tensorboard:
            callbacks.append(TensorBoard(folder / "tensorboard"))
        callbacks.append(TrainingBar())
    outcome = run_training(
        task, found, folder, device=named, resume=resume, callbacks=callbacks, log_every=log_every
    )  # fmt: skip
    if first:
        written = _write_report(outcome, task, own_device(named)) if outcome.finished else []
        _tell(outcome, task.best, written, as_json)
    click.get_current_context().exit(outcome.exit_code)


def run_name(source: str) -> str:
    """Return a folder's name for a recipe's name, or for a file."""
    path = Path(source)
    return path.stem if path.suffix else source.replace("/", "_")


def chosen_device(name: str) -> str:
    """Return a device's name; ``auto`` is CUDA's where there is one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def own_device(name: str) -> str:
    """Return the device of this process: of several, the one of its local rank."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and "LOCAL_RANK" in os.environ else name


def _write_report(outcome: TrainingOutcome, task: RecipeTask, device: str) -> list[Path]:
    """Write curves and page. What they lack is told, and the run is complete without them."""
    from hrnet_fast.training_report import draw_examples, legend, write_training_report

    note = ""
    try:
        result, network = _last_evaluation(outcome, task, device)
        examples = []
        if result is not None:
            note = legend(task.val)
            if len(result.samples) < result.count:
                note += f" They are of the {len(result.samples)} samples that the first process evaluated."
            examples = draw_examples(result, task.val, **task_drawing(task, network, device))
        return write_training_report(outcome.folder, examples, note)
    except HRNetFastError as error:
        click.echo(f"note: the run is complete, its report is not written: {error}", err=True)
        return []


def _last_evaluation(outcome: TrainingOutcome, task: RecipeTask, device: str) -> tuple[EvaluationResult | None, Any]:
    """Return the last evaluation and the network it was of; a run that was complete before is evaluated again."""
    import torch

    from hrnet_fast.checkpoints import load_checkpoint

    if task.val is None:
        return None, None
    ema = (outcome.folder / "final_ema.pth").exists()
    network = task.random_network("auto")
    weights = load_checkpoint(outcome.folder / ("final_ema.pth" if ema else "final.pth")).state_dict()
    network.load_state_dict(weights)
    network.eval().to(device)
    result = outcome.evaluations.get("ema" if ema else "raw")
    return result or task.evaluate(network, torch.device(device)), network


def task_drawing(task: RecipeTask, network: Any, device: str) -> dict[str, Any]:
    """Return the arguments of :func:`hrnet_fast.training_report.draw_examples` that depend on the task."""
    from hrnet_fast.evaluation.segmentation import predict_classes

    kind = task.recipe.task
    if kind == "segmentation":
        evaluation = task.evaluation()
        return {
            "lower_is_better": False,
            "classes": lambda index: predict_classes(network, task.val, index, task.crops, evaluation, device),
        }
    if kind == "detection":
        return {"lower_is_better": False, "names": task.val.names}
    if kind == "classification":
        return {"lower_is_better": False, "names": tuple(task.val.names)}
    return {"lower_is_better": True}


def _tell(outcome: TrainingOutcome, best: str, written: list[Path], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "folder": str(outcome.folder),
                "finished": outcome.finished,
                "stopped_by": outcome.stopped_by or None,
                "iterations": outcome.iterations,
                "epochs": outcome.epochs,
                "best": {weights: {best: value} for weights, value in outcome.best.items()},
                "best_epoch": dict(outcome.best_epoch),
                "skipped": outcome.skipped,
                "report": [str(path) for path in written],
            }
        )
        return
    state = "finished" if outcome.finished else f"stopped by {outcome.stopped_by}; --resume goes on"
    click.echo(f"{outcome.folder}: {state}; {outcome.epochs} epochs, {outcome.iterations} updates")
    for weights, value in outcome.best.items():
        click.echo(f"best {best}, {weights} weights: {value:.4g} in epoch {outcome.best_epoch[weights]}")
    if outcome.skipped:
        click.echo(f"{outcome.skipped} broken samples were left out")
    if written:
        click.echo("written: " + ", ".join(str(path) for path in written))
