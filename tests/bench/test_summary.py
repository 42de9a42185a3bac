"""Table 13 from the records of other tables."""

from __future__ import annotations

from pathlib import Path

from made_runs import measured, missing, run_of

from benchmarks.reports.page import render_page
from benchmarks.reports.records import Record
from benchmarks.reports.report import write_report
from benchmarks.reports.summary import summary_table

HRNET, RIVAL = "hrnetv1_w48_pose", "simplebaseline_r152"


def row(name: str, quantity: str, contender: str, value: float | None, printed: float, batch: int = 1) -> Record:
    about = {
        "suite": "table 17",
        "case": f"{name} {batch}",
        "quantity": quantity,
        "params": {"table": "17", "row": name, "batch": batch},
        "paper": {"table": "17", "row": name, "column": "some", "value": printed},
    }
    if value is None:
        return missing(contender, "wrong", **about)
    return measured(contender, value, **about)


RECORDS = [
    row(HRNET, "inference", "eager channels-last", 0.3, 0.058),
    row(HRNET, "inference", "hrnet_fast engine", 0.1, 0.058),
    row(HRNET, "inference", "eager channels-last", 9.0, 0.06, batch=4),  # Table 13 is of one image
    row(HRNET, "inference", "compile", 0.2, 0.058),
    row(RIVAL, "inference", "eager channels-last", 0.2, 0.029),
    row(HRNET, "training step", "eager channels-last", 3.0, 1.231, batch=2),
    row(HRNET, "training step", "hrnet_fast accelerate", None, 1.231, batch=2),
    row(RIVAL, "training step", "eager channels-last", 2.0, 1.231, batch=2),
    row("hrnetv1_w32_pose", "inference", "eager channels-last", 0.2, 0.057),  # not in it
]


def test_ratios_of_the_paper_and_here() -> None:
    table = summary_table(RECORDS)
    assert table is not None
    eager, ours = (dict(zip(table.columns, cells, strict=True)) for cells in table.rows)
    assert (eager["run as"], ours["run as"]) == ("eager", "hrnet_fast")
    assert (eager["inference, paper>"], eager["inference, here>"]) == ("2.00x", "1.50x")
    assert ours["inference, here>"] == "0.500x"
    assert (eager["training step, paper>"], eager["training step, here>"]) == ("1.00x", "1.50x")
    assert ours["training step, here>"] == ""  # a wrong answer has no time
    assert eager["training memory, here>"] == ""


def test_nothing_of_the_kind() -> None:
    assert summary_table([]) is None
    assert summary_table([measured("eager", 1.0), row(HRNET, "inference", "eager channels-last", 0.3, 0.058)]) is None


def test_it_is_in_reports_and_pages(tmp_path: Path) -> None:
    run = run_of(RECORDS)
    assert render_page(run).count("Table 13: HRNet / rival") == 1
    write_report([run], tmp_path / "report")
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert text.count("Table 13: HRNet / rival") == 1
