"""A report of result files: Markdown, PNG plots and one self-contained HTML page."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from hrnet_fast.bench.figures import markdown_text, slug
from hrnet_fast.bench.plots import Plot, suite_plots
from hrnet_fast.bench.records import Run, file_stem
from hrnet_fast.bench.summary import summary_table
from hrnet_fast.bench.tables import HOW_TO_READ, Table, by_suite, run_facts, suite_tables
from hrnet_fast.errors import InputError


@dataclass(frozen=True)
class SuiteSection:
    """What a report shows of one suite."""

    name: str
    anchor: str
    tables: list[Table]
    plots: list[Plot]


@dataclass(frozen=True)
class RunSection:
    """What a report shows of one run."""

    title: str
    facts: list[tuple[str, str]]
    suites: list[SuiteSection]


def write_report(runs: Sequence[Run], output_folder: str | Path, force: bool = False) -> list[Path]:
    """Write ``report.md``, ``report.html`` and a PNG per suite and quantity into the folder; return the paths.

    Raises:
        InputError: no runs, matplotlib or jinja2 is missing, the folder holds such files already and `force` is not
            given, or it cannot be made or written.
    """
    output = Path(output_folder)
    if not runs:
        raise InputError("a report needs at least one result file.")
    absent = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"the report needs {' and '.join(absent)}: pip install 'hrnet-fast[bench]'.")
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
    """Return what a report shows of each run; plots carry the names of their files, without suffix."""
    sections: list[RunSection] = []
    stems: set[str] = set()
    taken: set[str] = set()  # by files and anchors of all runs: words that differ may make the same name
    for run in runs:
        stem = _unused(file_stem(run) or "run", stems)
        tables = suite_tables(run)
        suites = []
        summary = summary_table(run.records)
        if summary:
            suites.append(SuiteSection("summary", _unused(slug(f"suite {stem} summary"), taken), [summary], []))
        for suite, records in by_suite(run.records).items():
            plots = [replace(p, name=_unused(f"{stem}-{p.name}", taken)) for p in suite_plots(suite, records)]
            suites.append(SuiteSection(suite, _unused(slug(f"suite {stem} {suite}"), taken), tables[suite], plots))
        words = (str(run.machine.get("device", "unknown device")), str(run.options.get("scale", "")))
        sections.append(RunSection(", ".join(w for w in words if w), run_facts(run), suites))
    return sections


def _unused(name: str, taken: set[str]) -> str:
    chosen, i = name, 1
    while chosen in taken:
        i += 1
        chosen = f"{name}-{i}"
    taken.add(chosen)
    return chosen


def markdown_page(sections: Sequence[RunSection]) -> str:
    """Return the report as Markdown, with links to the pictures beside it."""
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
    """Return the report as one page that holds its pictures and asks no network."""
    import jinja2

    text = resources.files("hrnet_fast").joinpath("data/bench_report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
    return template.render(sections=sections, how_to_read=HOW_TO_READ, data_url=_data_url)


def _data_url(plot: Plot) -> str:
    return "data:image/png;base64," + base64.b64encode(plot.png).decode("ascii")
