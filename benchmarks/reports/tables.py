"""Tables of a result file: each suite's figures, and the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.reports.figures import (
    DisplayUnit,
    baseline_of,
    is_ours,
    markdown_text,
    ours_of,
    plain,
    ratio,
    reason,
    scale_of,
    three_digits,
)
from benchmarks.reports.records import STATUSES, Record, Run, by_case, by_suite

SUITE_COLUMNS = (
    "case",
    "quantity",
    "dtype",
    "contender",
    "median>",
    "quartiles>",
    "/ baseline>",
    "/ ours>",
    "set-up s>",
    "error (limit)>",
    "FLOP/s>",
    "byte/s>",
    "of the limit>",
    "note",
)
HOW_TO_READ = (
    "Ratios divide a row's figure by the baseline's (eager, or the first contender without eager) and by that of this "
    "package's first contender. Errors are relative L2 distances to the float64 result; a contender that "
    "exceeds its limit has no time. "
    '"Of the limit" is the least time that the device\'s measured ceilings allow, divided by the time taken.'
)
PAPER_COLUMNS = (
    "table",
    "quantity",
    "batch",
    "dtype",
    "run as",
    "HRNet",
    "rival",
    "HRNet, paper>",
    "HRNet, here>",
    "rival, paper>",
    "rival, here>",
    "HRNet / rival, paper>",
    "HRNet / rival, here>",
)
PAPER_NOTE = (
    "The paper's figures are of other hardware. The ratio HRNet / rival carries over: both are measured on one device, "
    "by the same contender or by the two that are named (HRNet's / the rival's)."
)
Cells = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text.

    Attributes:
        title: the heading.
        columns: names; a trailing ``>`` aligns the column right.
        rows: one text per column.
        marks: per row "ours", "baseline", "missing" (no figure) or "".
        keys: number of leading columns that name a group of rows; repeated cells are left blank.
        note: how to read it.
    """

    title: str
    columns: Cells
    rows: tuple[Cells, ...]
    marks: Cells = ()
    keys: int = 0
    note: str = ""

    def headers(self) -> list[tuple[str, bool]]:
        """Return (name, aligned right) per column."""
        return [(c.removesuffix(">"), c.endswith(">")) for c in self.columns]

    def shown_rows(self) -> list[Cells]:
        """Return the rows without the leading cells that repeat those of the row above."""
        shown: list[Cells] = []
        for i, row in enumerate(self.rows):
            same = 0
            while i and same < self.keys and row[same] == self.rows[i - 1][same]:
                same += 1
            shown.append(("",) * same + row[same:])
        return shown

    def only(self, *names: str) -> Table:
        """Return the table with fewer columns, given by name."""
        kept = [i for i, (name, _) in enumerate(self.headers()) if name in names]
        return Table(
            self.title,
            tuple(self.columns[i] for i in kept),
            tuple(tuple(row[i] for i in kept) for row in self.rows),
            self.marks,
            sum(i < self.keys for i in kept),
            self.note,
        )

    def markdown(self) -> str:
        """Return the table in Markdown, without title and note."""
        lines = ["| " + " | ".join(markdown_text(name) for name, _ in self.headers()) + " |"]
        lines.append("| " + " | ".join("---:" if right else "---" for _, right in self.headers()) + " |")
        lines += ["| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in self.shown_rows()]
        return "\n".join(lines)


def suite_tables(run: Run) -> dict[str, list[Table]]:
    """Return each suite's tables: its figures and, where records have the paper's, both side by side."""
    tables: dict[str, list[Table]] = {}
    for suite, records in by_suite(run.records).items():
        beside = paper_table(records)
        tables[suite] = [suite_table(records), *([beside] if beside else [])]
    return tables


def group_scale(group: Sequence[Record]) -> DisplayUnit:
    """Return the unit that contenders of one case are shown in."""
    unit = next((r.unit for r in group if r.value is not None), group[0].unit)
    return scale_of([r.value for r in group if r.value is not None and r.unit == unit], unit)


def suite_table(records: Sequence[Record]) -> Table:
    """Return one row per case, quantity, dtype and contender; empty columns are left out."""
    rows: list[Cells] = []
    marks: list[str] = []
    for group in by_case(records).values():
        baseline = baseline_of(group)
        for record in group:
            rows.append(_suite_row(record, group, baseline))
            ours = "ours" if is_ours(record.contender) else ""
            marks.append("missing" if record.value is None else "baseline" if record is baseline else ours)
    kept = [c for i, c in enumerate(SUITE_COLUMNS) if i < 5 or any(row[i] for row in rows)]
    whole = Table("What was measured", SUITE_COLUMNS, tuple(rows), tuple(marks), keys=3)
    return whole.only(*(c.removesuffix(">") for c in kept))


def _suite_row(record: Record, group: Sequence[Record], baseline: Record) -> Cells:
    named = (record.case, record.quantity, record.dtype, record.contender)
    error = f"{record.error:.1e}" if record.error is not None else ""
    if error and record.limit is not None:
        error += f" ({record.limit:.1e})"
    if record.value is None:
        # Neither the quartiles nor the set-up time that the file may hold.
        note = plain(record.note) if record.status == "wrong" else ""
        return (*named, reason(record), "", "", "", "", error, "", "", "", note)
    same_unit = [r for r in group if r.unit == record.unit]
    scale = group_scale(same_unit)
    ours = ours_of(same_unit)
    spread = record.interquartile_range
    timed = record.unit == "s" and record.value > 0
    return (
        *named,
        scale.full(record.value),
        f"{scale.text(spread[0])} - {scale.text(spread[1])}" if spread and spread[0] < spread[1] else "",
        ratio(record.value, baseline.value) if baseline.unit == record.unit else "",
        ratio(record.value, ours.value) if ours else "",
        three_digits(record.setup_s) if record.setup_s is not None else "",
        error,
        _rate(record.flops, record.value, "FLOP/s") if timed else "",
        _rate(record.bytes, record.value, "byte/s") if timed else "",
        f"{record.limit_s / record.value:.0%}" if timed and record.limit_s is not None else "",
        plain(record.note),
    )


def _rate(amount: float | None, seconds: float, unit: str) -> str:
    if amount is None:
        return ""
    return scale_of([amount / seconds], unit).full(amount / seconds)


def paper_table(records: Sequence[Record]) -> Table | None:
    """Return the paper's figures beside ours, one row per HRNet and rival; None where no record has the paper's figure.

    HRNet and rival are compared within one table, quantity, batch size and dtype. A rival that the contender does not
    run is represented by its baseline, and the row names both contenders.
    """
    if not any(r.paper for r in records):
        return None
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if record.paper or ("table" in record.params and "row" in record.params):
            batch = str(record.params.get("batch", ""))
            groups.setdefault((_origin(record, "table"), record.quantity, batch, record.dtype), []).append(record)
    rows: list[Cells] = []
    for names, group in groups.items():
        hrnets = [r for r in group if _role(r) == "hrnet"]
        rivals: dict[str, list[Record]] = {}
        for record in group:
            if _role(record) != "hrnet":
                rivals.setdefault(_origin(record, "row"), []).append(record)
        for hrnet in hrnets:
            rows += [(*names, *_paper_cells(hrnet, _opponent(hrnet, runs))) for runs in rivals.values()]
            if not rivals:
                rows.append((*names, *_paper_cells(hrnet, None)))
        if not hrnets:
            rows += [(*names, *_paper_cells(None, record)) for runs in rivals.values() for record in runs]
    marks = tuple("ours" if is_ours(row[4]) else "" for row in rows)
    return Table("Beside the paper", PAPER_COLUMNS, tuple(rows), marks, keys=4, note=PAPER_NOTE)


def _origin(record: Record, what: str) -> str:
    return str((record.paper or {}).get(what, record.params.get(what, "")))


def _role(record: Record) -> str:
    given = record.params.get("role")
    return str(given) if given else "hrnet" if "hrnet" in _origin(record, "row").lower() else "rival"


def _opponent(hrnet: Record, runs: Sequence[Record]) -> Record:
    return next((r for r in runs if r.contender == hrnet.contender), baseline_of(runs))


def _paper_cells(hrnet: Record | None, rival: Record | None) -> Cells:
    pair = [r for r in (hrnet, rival) if r is not None]
    values = [v for r in pair for v in (r.value, paper_value(r)) if v is not None]
    scale = scale_of(values, next((r.unit for r in pair if r.value is not None), pair[0].unit))

    def cells(record: Record | None) -> Cells:
        if record is None:
            return "", ""
        printed = paper_value(record)
        here = scale.full(record.value) if record.value is not None else record.status
        return scale.full(printed) if printed is not None else "", here

    return (
        " / ".join(dict.fromkeys(r.contender for r in pair)),
        _origin(hrnet, "row") if hrnet else "",
        _origin(rival, "row") if rival else "",
        *cells(hrnet),
        *cells(rival),
        ratio(paper_value(hrnet), paper_value(rival)) if hrnet and rival else "",
        ratio(hrnet.value, rival.value) if hrnet and rival and hrnet.unit == rival.unit else "",
    )


def paper_value(record: Record) -> float | None:
    """Return the paper's figure of a record, or None."""
    value = (record.paper or {}).get("value")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def run_facts(run: Run) -> list[tuple[str, str]]:
    """Return (name, text) of a run's device, machine, versions, revision, date, options, ceilings and record counts."""
    rest = {k: v for k, v in run.machine.items() if k != "device"}
    counts = {s: sum(r.status == s for r in run.records) for s in STATUSES}
    facts = [
        ("device", str(run.machine.get("device", "unknown"))),
        ("machine", _listed(rest)),
        ("versions", _listed(run.versions)),
        ("revision", run.revision),
        ("date", run.created),
        ("options", _listed(run.options) or "none"),
        ("ceilings", ", ".join(f"{k} {_ceiling(k, v)}" for k, v in run.ceilings.items())),
        ("records", ", ".join(f"{n} {s}" for s, n in counts.items() if n) or "none"),
    ]
    return [(name, text) for name, text in facts if text]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{k} {plain(str(v))}" for k, v in values.items())


def _ceiling(name: str, value: float) -> str:
    return scale_of([value], "byte/s" if name == "copy" else "FLOP/s").full(value)
