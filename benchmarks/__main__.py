"""``python -m benchmarks``: reports, pages, pictures and comparisons of result files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from benchmarks.reports.changes import Change, count_compared, differences, failing, find_changes
from benchmarks.reports.figures import reason, scale_of, three_digits
from benchmarks.reports.records import Record, load_run
from benchmarks.reports.result_files import RESULTS, match_sides, read_runs
from benchmarks.reports.trainings import RECIPES
from hrnet_fast.cli.console import json_option, print_json, print_table, run_app
from hrnet_fast.models.registry import get_variant

COLUMNS = (
    "change", "suite", "case", "quantity", "dtype", "contender", "before>", "after>", "after / before>", "noise>",
)  # fmt: skip
PATH = click.Path(path_type=Path)
files_argument = click.argument("files", nargs=-1, type=PATH)
file_argument = click.argument("file", type=PATH)
check_option = click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a page has other figures.")


def output_option(default: Path | str, text: str) -> Callable[..., Any]:
    """Return the option ``--output`` of a command."""
    return click.option("--output", "-o", default=Path(default), show_default=True, type=PATH, help=text)


def tell_pages(pages: Mapping[Path, bool], check: bool) -> None:
    """Print what was done about pages, of which some were stale; end with 1 where they were only checked."""
    done = "has other figures than the result file" if check else "written"
    for path, stale in pages.items():
        click.echo(f"{path}: {done if stale else 'up to date'}")
    if check and any(pages.values()):
        raise click.exceptions.Exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Read result files of the benchmarks; `pytest benchmarks/ --benchmark --results FILE` writes one."""


@app.command()
@files_argument
@output_option("bench_report", "Folder of the report.")
@click.option("--force", is_flag=True, help="Replace an earlier report in the output folder.")
def report(files: tuple[Path, ...], output: Path, force: bool) -> None:
    """Write FILES (result files or folders of them; benchmarks/results by default) as Markdown, plots and HTML."""
    from benchmarks.reports.report import write_report

    paths = write_report(list(read_runs(files or (Path(RESULTS),)).values()), output, force)
    click.echo("written: " + ", ".join(str(p) for p in paths))


@app.command()
@files_argument
@output_option("docs/benchmarks", "Folder of the pages.")
@check_option
def page(files: tuple[Path, ...], output: Path, check: bool) -> None:
    """Write the Markdown page NAME.md of each of FILES (benchmarks/results by default), NAME.json."""
    from benchmarks.reports.page import write_page

    pages = {output / f"{Path(source).stem}.md": run for source, run in read_runs(files or (Path(RESULTS),)).items()}
    tell_pages({path: write_page(run, path, check) for path, run in pages.items()}, check)


@app.command()
@file_argument
@output_option("docs/images", "Folder of the pictures.")
def pictures(file: Path, output: Path) -> None:
    """Draw README's latency.png and training.png from FILE, a result file; one without figures in it is left out."""
    from benchmarks.reports.readme_pictures import PICTURES, draw_pictures

    paths = draw_pictures(load_run(file), output)
    click.echo("written: " + ", ".join(str(p) for p in paths))
    for suite, (name, _) in PICTURES.items():
        if output / name not in paths:
            click.echo(f"left out: {name}, as the file has no figures of {suite}", err=True)


@app.command()
@output_option(Path(RESULTS, "nulldevice.json"), "Result file.")
@click.option("--networks", help="Comma-separated names, in place of those of the paper's tables.")
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(1), help="Timed calls of each contender.")
def host(output: Path, networks: str | None, rounds: int) -> None:
    """Count launches and measure host time on the null device, with the CUDA kernels but without a GPU.

    Takes a few minutes, and a machine that does nothing else.
    """
    from benchmarks.host_side import NETWORKS, measure, on_null_device, run_on_null_device

    if not on_null_device():
        given = ("--output", str(output.resolve()), "--rounds", str(rounds))
        raise click.exceptions.Exit(
            run_on_null_device(["host", *given, *(("--networks", networks) if networks else ())])
        )
    chosen = {n: NETWORKS.get(n) or get_variant(n).input_size for n in (networks or ",".join(NETWORKS)).split(",")}
    run = measure(chosen, rounds, output)
    click.echo(f"written: {output}, {len(run.records)} figures")


@app.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with a folder for each recipe.",
)
@click.option("--output", "-o", required=True, type=PATH, help="Result file; what it has is kept.")
@click.option("--recipes", help="Comma-separated, in place of all of the page.")
@click.option("--seeds", default="0,1", show_default=True, help="Comma-separated.")
@click.option("--set", "settings", multiple=True, help="A field of the recipes: loop.epochs=2.")
def learn(data: Path, output: Path, recipes: str | None, seeds: str, settings: tuple[str, ...]) -> None:
    """Train recipes on real pictures with eager and with accelerated modules; takes more than an hour for all."""
    from benchmarks.learning import learn as run_all

    chosen = recipes.split(",") if recipes else list(RECIPES)
    if unknown := [name for name in chosen if name not in RECIPES]:
        raise click.BadParameter(f"{', '.join(unknown)}; accepted are {', '.join(RECIPES)}.", param_hint="--recipes")
    if not all(seed.isdecimal() for seed in seeds.split(",")):
        raise click.BadParameter(f"{seeds!r}; give whole numbers such as 0,1.", param_hint="--seeds")
    done = run_all(data, output, {n: RECIPES[n] for n in chosen}, [int(s) for s in seeds.split(",")], settings)
    click.echo(f"written: {output}, {len(done)} trainings")


@app.command()
@click.argument("source", type=PATH)
@click.argument("output", type=PATH)
def cells(source: Path, output: Path) -> None:
    """Cut single cells out of SOURCE, a folder of the BCCD data set, into OUTPUT/train and OUTPUT/val."""
    from benchmarks.cut_cells import cut_cells

    for name, count in sorted(cut_cells(source, output).items()):
        click.echo(f"{output / name}: {count}")


@app.command()
@file_argument
@output_option("docs/benchmarks/learning.md", "The page.")
@click.option(
    "--picture", default=Path("docs/images/learning.png"), show_default=True, type=PATH, help="The page's picture."
)
@check_option
def learning_page(file: Path, output: Path, picture: Path, check: bool) -> None:
    """Write the page of FILE, which `learn` wrote, and its picture."""
    from benchmarks.reports.learning_page import write_learning_page

    tell_pages({output: write_learning_page(file, output, picture, check)}, check)


@app.command()
@click.argument("before")
@click.argument("after", required=False)
@click.option("--threshold", default="5%", show_default=True, help="Smaller differences do not count: 5% or 0.05.")
@click.option("--fail/--no-fail", default=True, show_default=True, help="Exit with 1 if something got slower or wrong.")
@json_option
def compare(before: str, after: str | None, threshold: str, fail: bool, as_json: bool) -> None:
    """Show what got slower, faster, larger or wrong from BEFORE to AFTER.

    Each is a result file, a folder of them, or a git revision, whose committed files under benchmarks/results count.
    Without AFTER a revision is compared with the working tree.
    """
    share = parse_share(threshold)
    matched, alone = match_sides(before, after)
    answers: list[dict[str, Any]] = []
    bad = False
    for name, (old, new) in matched.items():
        changes = find_changes(old, new, share)
        bad |= failing(changes)
        answer = {
            "file": name,
            "compared": count_compared(old, new),
            "differences": differences(old, new),
            "changes": [_to_dict(change) for change in changes],
        }
        if not as_json:
            _show(name, answer, changes, threshold)
        answers.append(answer)
    if as_json:
        print_json({"threshold": share, "worse": bad, "files": answers, "unmatched": alone})
    for line in alone:
        click.echo(f"note: {line}", err=True)
    if bad and fail:
        raise click.exceptions.Exit(1)


def _show(name: str, answer: dict[str, Any], changes: list[Change], threshold: str) -> None:
    if answer["differences"]:
        what = "; ".join(answer["differences"])
        click.echo(f"warning: {name}: times of different machines say little ({what}).", err=True)
    figures = f"{answer['compared']} figures that both have"
    if changes:
        print_table(COLUMNS, [_change_row(change) for change in changes], title=f"{name}: {figures}; changed are")
    else:
        click.echo(f"{name}: of {figures} none differs by more than {threshold} and noise.")


def _change_row(change: Change) -> tuple[str, ...]:
    suite, case, quantity, dtype, contender = change.key
    before, after = _figure_cell(change.before), _figure_cell(change.after)
    ratio = f"{three_digits(change.ratio)}x" if change.ratio is not None else ""
    noise = f"{change.noise:.1%}" if change.noise is not None else ""
    return change.kind, suite, case, quantity, dtype, contender, before, after, ratio, noise


def _figure_cell(record: Record | None) -> str:
    if record is None:
        return ""
    return reason(record) if record.value is None else scale_of([record.value], record.unit).full(record.value)


def _to_dict(change: Change) -> dict[str, Any]:
    names = ("suite", "case", "quantity", "dtype", "contender")
    sides = {
        name: None
        if record is None
        else {"status": record.status, "value": record.value, "unit": record.unit}
        | ({"reason": reason(record)} if record.value is None else {})
        for name, record in (("before", change.before), ("after", change.after))
    }
    about = {"kind": change.kind, "worse": change.fails, "ratio": change.ratio, "noise": change.noise}
    return {**about, **dict(zip(names, change.key, strict=True)), **sides}


def parse_share(text: str) -> float:
    """Return "5%" or "0.05" as 0.05.

    Raises:
        click.BadParameter: anything else, and what is not within 0 and 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise click.BadParameter(f"{text!r} is no share below one; give one such as 5% or 0.05.")
    return share


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; see :func:`hrnet_fast.cli.console.run_app`."""
    run_app(app, "python -m benchmarks", argv)


if __name__ == "__main__":
    main()
