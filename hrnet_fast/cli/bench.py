"""``bench``: what result files of the benchmarks say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hrnet_fast.cli.console import json_option, print_json, print_table
from hrnet_fast.cli.option_values import parse_share
from hrnet_fast.errors import InputError

if TYPE_CHECKING:
    from hrnet_fast.bench.compare import Change
    from hrnet_fast.bench.records import Record, Run

REPORT_FOLDER = Path("bench_report")
COLUMNS = (
    "change",
    "suite",
    "case",
    "quantity",
    "dtype",
    "contender",
    "before>",
    "after>",
    "after / before>",
    "noise>",
)


@click.group()
def bench() -> None:
    """Read the benchmarks' result files: reports and comparisons."""


@bench.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help=f"Folder of the report.  [default: {REPORT_FOLDER}]"
)
@click.option("--force", is_flag=True, help="Replace an earlier report in the output folder.")
@click.option(
    "--readme", type=click.Path(path_type=Path), help="Bring this README's figures up to date (no report unless -o)."
)
@click.option(
    "--check", is_flag=True, help="With --readme: write nothing, exit with 1 if the README says something else."
)
def report(files: tuple[Path, ...], output: Path | None, force: bool, readme: Path | None, check: bool) -> None:
    """Write FILES (result files or folders of them; benchmarks/results by default) as Markdown, plots and HTML."""
    from hrnet_fast.bench.result_files import RESULTS, read_runs

    if check and (readme is None or output is not None):
        raise InputError("--check looks at a README and writes nothing: give it --readme, and no --output.")
    if force and readme is not None and output is None:
        raise InputError("--force replaces a report, and --readme alone writes none; leave it out or give --output.")
    runs = list(read_runs(files or (Path(RESULTS),)).values())
    if output is not None or readme is None:
        from hrnet_fast.bench.report import write_report

        paths = write_report(runs, output or REPORT_FOLDER, force)
        click.echo("written: " + ", ".join(str(p) for p in paths))
    if readme is not None:
        _bring_up_to_date(readme, runs, check)


def _bring_up_to_date(readme: Path, runs: list[Run], check: bool) -> None:
    from hrnet_fast.bench.readme import update_readme

    stale = update_readme(readme, runs, check)
    if stale and check:
        click.echo(f"{readme}: its figures are not those of the result files; bring it up to date without --check.")
        raise click.exceptions.Exit(1)
    click.echo(f"written: {readme}" if stale else f"{readme}: up to date")


@bench.command()
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
    from hrnet_fast.bench import compare as comparing
    from hrnet_fast.bench.result_files import match_sides

    share = parse_share(threshold)
    matched, alone = match_sides(before, after)
    answers: list[dict[str, Any]] = []
    bad = False
    for name, (old, new) in matched.items():
        changes = comparing.compare(old, new, share)
        bad |= comparing.failing(changes)
        answer = {
            "file": name,
            "compared": comparing.compared(old, new),
            "differences": comparing.differences(old, new),
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
        print_table(COLUMNS, [_row(change) for change in changes], title=f"{name}: {figures}; changed are")
    else:
        click.echo(f"{name}: of {figures} none differs by more than {threshold} and noise.")


def _row(change: Change) -> tuple[str, ...]:
    from hrnet_fast.bench.figures import number

    suite, case, quantity, dtype, contender = change.key
    before, after = _cell(change.before), _cell(change.after)
    ratio = f"{number(change.ratio)}x" if change.ratio is not None else ""
    noise = f"{change.noise:.1%}" if change.noise is not None else ""
    return change.kind, suite, case, quantity, dtype, contender, before, after, ratio, noise


def _cell(record: Record | None) -> str:
    from hrnet_fast.bench.figures import reason, scale_of

    if record is None:
        return ""
    return reason(record) if record.value is None else scale_of([record.value], record.unit).full(record.value)


def _to_dict(change: Change) -> dict[str, Any]:
    from hrnet_fast.bench.figures import reason

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
