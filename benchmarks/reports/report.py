"""Writes a report of result files: Markdown, PNG plots and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.reports.crossings import crossing_table
from benchmarks.reports.figures import markdown_text, slug
from benchmarks.reports.plots import Plot, suite_plots
from benchmarks.reports.records import Run, by_suite
from benchmarks.reports.summary import summary_table
from benchmarks.reports.tables import HOW_TO_READ, Table, run_facts, suite_tables
from hrnet_fast.errors import InputError
from hrnet_fast.html_report import check_packages, render_html

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class SuiteSection:
    """The part of a report on one suite."""

    name: str
    anchor: str
    tables: list[Table]
    plots: list[Plot]


@dataclass(frozen=True)
class RunSection:
    """The part of a report on one run."""

    title: str
    facts: list[tuple[str, str]]
    suites: list[SuiteSection]


def write_report(runs: Sequence[Run], output_folder: str | Path, force: bool = False) -> list[Path]:
    """Write ``report.md``, ``report.html`` and a PNG per suite and quantity into the folder; return the paths.

    Raises:
        InputError: no runs, matplotlib or jinja2 is missing, the folder holds such files already and `force` is not
            given, or it cannot be created or written.
    """
    output = Path(output_folder)
    if not runs:
        raise InputError("a report needs at least one result file.")
    check_packages("bench")
    pages = (output / "report.md", output / "report.html")
    if not force and any(page.exists() for page in pages):
        raise InputError(f"{output}: holds a report already; give another --output, or --force to replace it.")
    try:
        output.mkdir(parents=True, exist_ok=True)  # before the drawing, which takes longer
        sections = report_sections(runs)
        plots = [plot for section in sections for suite in section.suites for plot in suite.plots]
        pictures = {output / f"{plot.name}.png": plot.png for plot in plots}
        taken = [path for path in pictures if path.exists()]
        if taken and not force:
            raise InputError(f"{taken[0]} exists already; give another --output, or --force to replace it.")
        for path, png in pictures.items():
            path.write_bytes(png)
        pages[0].write_text(markdown_page(sections), encoding="utf-8")
        pages[1].write_text(html_page(sections), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: the report cannot be written ({error}).") from error
    return [*pages, *pictures]


def report_sections(runs: Sequence[Run]) -> list[RunSection]:
    """Return the sections of each run; the names of plots and anchors are unique in the report."""
    sections: list[RunSection] = []
    stems: set[str] = set()
    taken: set[str] = set()  # names of files and anchors of all runs: different texts may give one slug
    for run in runs:
        tables = suite_tables(run)
        device, scale = str(run.machine.get("device", "unknown device")), str(run.options.get("scale", ""))
        stem = _unused(slug(f"{device} {scale}"), stems)
        suites = []
        summary = summary_table(run.records)
        if summary:
            suites.append(SuiteSection("summary", _unused(slug(f"suite {stem} summary"), taken), [summary], []))
        for suite, records in by_suite(run.records).items():
            plots = [replace(p, name=_unused(f"{stem}-{p.name}", taken)) for p in suite_plots(suite, records)]
            crossing = crossing_table(suite, records)
            shown = [*tables[suite], *([crossing] if crossing else [])]
            suites.append(SuiteSection(suite, _unused(slug(f"suite {stem} {suite}"), taken), shown, plots))
        sections.append(RunSection(", ".join(w for w in (device, scale) if w), run_facts(run), suites))
    return sections


def _unused(name: str, taken: set[str]) -> str:
    chosen, i = name, 1
    while chosen in taken:
        i += 1
        chosen = f"{name}-{i}"
    taken.add(chosen)
    return chosen


def markdown_page(sections: Sequence[RunSection]) -> str:
    """Return the report as Markdown, with links to the images in its folder."""
    lines = ["# Benchmarks", "", HOW_TO_READ, ""]
    for section in sections:
        lines += [f"## {markdown_text(section.title)}", ""]
        lines += [f"- {name}: {markdown_text(text)}" for name, text in section.facts]
        for suite in section.suites:
            lines += ["", f"### {markdown_text(suite.name)}"]
            for table in suite.tables:
                lines += ["", f"**{table.title}**", "", table.markdown(), *(["", table.note] if table.note else [])]
            for plot in suite.plots:
                lines += ["", f"![{markdown_text(plot.title).replace(']', '')}]({plot.name}.png)"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def html_page(sections: Sequence[RunSection]) -> str:
    """Return the report as one HTML page that contains its images and loads nothing."""
    return render_html(TEMPLATE.read_text(encoding="utf-8"), sections=sections, how_to_read=HOW_TO_READ)
