"""Tables of records: baselines of ratios, roofline columns, reasons for missing figures, the paper's figures."""

from __future__ import annotations

import pytest
from made_runs import CASE, WRONG, full_run, measured, missing, paper_records, run_of

from benchmarks.reports.figures import (
    baseline_of,
    is_ours,
    markdown_text,
    ours_of,
    ratio,
    reason,
    scale_of,
    three_digits,
)
from benchmarks.reports.tables import Table, paper_table, run_facts, suite_table, suite_tables


def cells(table: Table, **named: str) -> dict[str, str]:
    """The one row whose cells are as named."""
    names = [name for name, _ in table.headers()]
    rows = [dict(zip(names, row, strict=True)) for row in table.rows]
    (found,) = [row for row in rows if all(row[k] == v for k, v in named.items())]
    return found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (0.4, "0.400"),
        (0.9999, "1.00"),
        (9.999, "10.0"),
        (99.99, "100"),
        (1234.5, "1234"),
        (1e-7, "1.00e-07"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_one_unit_for_what_is_compared() -> None:
    assert scale_of([0.9, 0.004], "s").name == "ms"
    assert scale_of([3.0, 2.0], "s").full(2.0) == "2.00 s"
    assert scale_of([1e-9], "s").name == "us"
    assert scale_of([], "byte").name == "B"
    assert scale_of([3 * 2.0**30], "byte").full(3 * 2.0**30) == "3.00 GiB"
    assert scale_of([2.5e12], "FLOP/s").full(2.5e12) == "2.50 TFLOP/s"


def test_who_is_baseline_and_who_is_ours() -> None:
    order = [measured("openvino", 1), measured("eager channels-last", 1), measured("eager", 1)]
    assert baseline_of(order).contender == "eager"
    assert baseline_of(order[:2]).contender == "eager channels-last"
    assert baseline_of(order[:1]).contender == "openvino"
    assert ours_of(order) is None
    assert is_ours("engine bfloat16")
    assert is_ours("fused (cpu)")
    assert not is_ours("engineered")
    wrong = missing("engine", "wrong", error=1.0, limit=0.1)
    later = measured("fused triton", 1)
    assert ours_of([wrong, later]) is later


def test_ratios_and_spread() -> None:
    table = suite_table([measured("eager", 0.1, setup_s=0.0), measured("engine", 0.04, setup_s=1.25)])
    eager, engine = cells(table, contender="eager"), cells(table, contender="engine")
    assert engine["median"] == "40.0 ms"
    assert engine["quartiles"] == "39.6 - 40.4"
    assert (engine["/ baseline"], engine["/ ours"]) == ("0.400x", "1.00x")
    assert (eager["/ baseline"], eager["/ ours"]) == ("1.00x", "2.50x")
    assert engine["set-up s"] == "1.25"
    assert engine["error (limit)"] == "1.0e-06 (1.0e-05)"
    assert table.marks == ("baseline", "ours")
    # Nobody has these.
    assert not {"FLOP/s", "of the limit", "note"} & {name for name, _ in table.headers()}
    assert ratio(1.0, 0.0) == ratio(None, 1.0) == ""


def test_contenders_of_other_cases_and_dtypes_are_not_compared() -> None:
    table = suite_table([measured("eager", 0.1), measured("engine", 0.02, dtype="bfloat16")])
    assert cells(table, contender="engine")["/ baseline"] == "1.00x"
    assert cells(table, contender="eager")["/ ours"] == ""


def test_roofline() -> None:
    records = [measured("eager", 4e-4), measured("fused", 1e-4, flops=1e7, bytes=1e6, limit_s=5e-5)]
    row = cells(suite_table(records), contender="fused")
    assert (row["FLOP/s"], row["byte/s"], row["of the limit"]) == ("100 GFLOP/s", "10.0 GB/s", "50%")
    instant = suite_table([measured("eager", 0.0, flops=1.0, limit_s=1.0), measured("fused", 0.0)])
    assert all(row[4] == "0.00 us" for row in instant.rows)
    assert "FLOP/s" not in {name for name, _ in instant.headers()}


def test_what_has_no_figure_says_why_and_shows_no_time() -> None:
    table = suite_tables(full_run())["inference"][0]
    row = cells(table, contender="compiled")
    assert row["median"] == "wrong: error 3.0e-02 > limit 1.0e-03"
    assert row["quartiles"] == row["/ baseline"] == row["/ ours"] == row["set-up s"] == ""
    assert cells(table, contender="openvino")["median"] == "unavailable: openvino is not installed"
    assert cells(table, contender="openvino int8")["median"] == "out of time"
    assert [m for m, r in zip(table.marks, table.rows, strict=True) if r[3] == "compiled"] == ["missing"]
    assert "nan against limit" in reason(missing("x", "wrong", error=float("nan"), limit=1e-3))
    assert reason(missing("x", "wrong", "no output")) == "wrong: no output"
    assert len(reason(missing("x", "failed", "why " * 500))) < 250


def test_a_wrong_baseline_gives_no_ratio() -> None:
    table = suite_table([missing("eager", "wrong", error=1.0, limit=0.1), measured("engine", 0.04)])
    assert "/ baseline" not in {name for name, _ in table.headers()}


def test_markdown_keeps_its_cells() -> None:
    table = suite_table([measured("eager", 1.0, note="a | b <!-- /performance -->\n`c`")])
    line = table.markdown().splitlines()[-1]
    assert line.count("|") == len(table.columns) + 1
    assert "<" not in line
    assert markdown_text("a*b\\c") == "a&#42;b&#92;c"
    shown = suite_tables(full_run())["inference"][0].shown_rows()
    assert shown[0][:3] == (CASE, "inference", "float32")
    assert shown[1][:3] == ("", "", "")
    assert shown[6][:3] == ("", "inference memory", "float32")


def test_beside_the_paper() -> None:
    table = paper_table(paper_records())
    assert table is not None
    assert len(table.rows) == 4
    pair = {"HRNet": "hrnetv1_w32_pose", "rival": "simplebaseline_r152"}
    row = cells(table, **pair, **{"run as": "engine"})
    assert [row[f"HRNet, {where}"] for where in ("paper", "here")] == ["57.0 ms", "60.0 ms"]
    assert [row[f"rival, {where}"] for where in ("paper", "here")] == ["30.0 ms", "50.0 ms"]
    assert [row[f"HRNet / rival, {where}"] for where in ("paper", "here")] == ["1.90x", "1.20x"]
    # No engine ran the smaller rival: the row says that two ways of running meet.
    mixed = cells(table, rival="simplebaseline_r50", **{"run as": "engine / eager"})
    assert mixed["HRNet / rival, here"] == "1.50x"


def test_beside_the_paper_nothing_else_is_compared() -> None:
    hrnet, _, r50, *_ = paper_records()
    other_batch = measured("eager", 0.3, params={**r50.params, "batch": 4}, paper=r50.paper)
    other_table = measured(
        "eager", 0.3, params={**r50.params, "table": "18"}, paper={**(r50.paper or {}), "table": "18"}
    )
    other_type = measured("eager", 0.3, params=r50.params, paper=r50.paper, dtype="bfloat16")
    table = paper_table([hrnet, other_batch, other_table, other_type])
    assert table is not None
    assert len(table.rows) == 4
    assert all(row[-1] == row[-2] == "" for row in table.rows)
    assert paper_table([measured("eager", 1.0)]) is None


def test_beside_the_paper_the_wrong_has_no_ratio() -> None:
    hrnet = paper_records()[0]
    wrong = missing("eager", "wrong", params=hrnet.params, paper=hrnet.paper, error=1.0, limit=0.1, low=0.0777)
    table = paper_table([wrong, *paper_records()[2:]])
    assert table is not None
    row = cells(table, rival="simplebaseline_r50")
    assert (row["HRNet, paper"], row["HRNet, here"]) == ("57.0 ms", "wrong")
    assert (row["HRNet / rival, paper"], row["HRNet / rival, here"]) == ("4.75x", "")


def test_facts_of_a_run() -> None:
    facts = dict(run_facts(full_run()))
    assert facts["device"] == "Test CPU 3000"
    assert "threads 4" in facts["machine"]
    assert "torch 2.10.0" in facts["versions"]
    assert facts["revision"] == "abc1234"
    assert facts["date"].startswith("2026-03-04")
    assert "scale quick" in facts["options"]
    assert "copy 20.0 GB/s" in facts["ceilings"]
    assert facts["records"].startswith("19 measured, 1 wrong")
    assert dict(run_facts(run_of([WRONG], options={})))["options"] == "none"
