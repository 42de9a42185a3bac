"""``demo``: networks of four tasks on a photograph."""

from __future__ import annotations

from pathlib import Path

import click

from hrnet_fast.cli.console import json_option, print_json, print_table, progress, show_notes
from hrnet_fast.errors import InputError


@click.command()
@click.option("--output", "-o", default=Path("demo_output"), show_default=True, type=click.Path(path_type=Path))
@click.option("--image", type=click.Path(path_type=Path), help="A photograph; by default the one in the package.")
@click.option(
    "--checkpoint", "-c", "checkpoints", multiple=True, help="TASK=FILE: trained weights for pose, segmentation, "
    "classification or detection; may be repeated. Tasks without one run on random weights.",
)  # fmt: skip
@click.option("--task", "tasks", multiple=True, help="Only these tasks; may be repeated.")
@click.option("--rounds", default=5, show_default=True, help="Timed rounds; the median is shown.")
@click.option("--force", is_flag=True, help="Replace an earlier report in the output folder.")
@json_option
def demo(
    output: Path,
    image: Path | None,
    checkpoints: tuple[str, ...],
    tasks: tuple[str, ...],
    rounds: int,
    force: bool,
    as_json: bool,
) -> None:
    """Run four networks on a photograph; report agreement, latency, operator calls and memory."""
    from hrnet_fast.demo.measurement import DEMO_TASKS, run_demo
    from hrnet_fast.demo.report import table_rows, write_demo_report
    from hrnet_fast.html_report import check_packages

    check_packages("demo")
    show_notes()
    given = dict(_parse_checkpoint(c, tuple(DEMO_TASKS)) for c in checkpoints)
    if len(given) < len(checkpoints):
        raise InputError(f"--checkpoint {checkpoints[-1]}: give one file a task.")
    unknown = sorted(set(tasks) - set(DEMO_TASKS))
    if unknown:
        raise InputError(f"--task {unknown[0]}: accepted are {', '.join(DEMO_TASKS)}.")
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: give at least 1.")
    if (output / "report.html").exists() and not force:
        raise InputError(f"{output}: holds a report already; give another --output, or --force to replace it.")
    chosen = tasks or tuple(DEMO_TASKS)
    idle = sorted(set(given) - set(chosen))
    if idle:
        raise InputError(f"--checkpoint {idle[0]}={given[idle[0]]}: --task leaves {idle[0]} out; drop one of the two.")
    steps = progress(run_demo(chosen, image=image, checkpoints=given, rounds=rounds), len(chosen), "demo")
    results = list(steps)
    pages = write_demo_report(results, output)
    if as_json:
        print_json([r.to_dict() for r in results])
        return
    columns, rows = table_rows(results)
    print_table(columns, rows, title=f"HRNet on {results[0].image_name}")
    for r in results:
        if r.random_weights:
            click.echo(f"{r.task}: the weights are RANDOM (no checkpoint given); its picture means nothing.")
    click.echo("written: " + ", ".join(str(p) for p in pages))


def _parse_checkpoint(text: str, tasks: tuple[str, ...]) -> tuple[str, Path]:
    task, _, path = text.partition("=")
    if task not in tasks or not path:
        raise InputError(f"--checkpoint {text}: give TASK=FILE with a task of {', '.join(tasks)}.")
    return task, Path(path)
