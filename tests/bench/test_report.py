"""Reports and the documentation's page: complete, readable, and without a time for a wrong result."""

from __future__ import annotations

import html.parser
import io
import re
from pathlib import Path

import pytest
from made_runs import full_run, measured, missing, run_of
from PIL import Image

from benchmarks.reports.page import render_page
from benchmarks.reports.plots import colours_of, scaling_lines, suite_plots
from benchmarks.reports.records import Record
from benchmarks.reports.report import write_report
from hrnet_fast.errors import InputError

# The quartiles and the set-up time that the wrong contender's record holds, in every unit they could be shown in.
FORBIDDEN = re.compile(r"77\.7|88\.8|0\.0777|0\.0888|0\.0833|83\.\d ms")


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.no_cover
@pytest.mark.slow
def test_report_is_complete(tmp_path: Path) -> None:
    again = run_of(full_run().records, machine={"device": "Other GPU", "kind": "cuda"}, revision="fedcba9-dirty")
    # Twice the same machine: no file of one run takes the place of the other's.
    paths = write_report([full_run(), full_run(), again], tmp_path / "new" / "folder")
    assert len(set(paths)) == len(paths) == 2 + 3 * 5
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    page, text = (next(p for p in paths if p.suffix == s).read_text(encoding="utf-8") for s in (".html", ".md"))
    for made in (page, text):
        for words in (
            "Test CPU 3000",
            "Other GPU",
            "torch 2.10.0",
            "abc1234",
            "fedcba9-dirty",
            "2026-03-04",
            "scale quick",
        ):
            assert words in made
        for words in (
            "40.0 ms",
            "unavailable: openvino is not installed",
            "out of time",
            "4.75x",
            "3.00x",
            "of the limit",
        ):
            assert words in made
        assert "3.0e-02 &gt; limit 1.0e-03" in made or "3.0e-02 > limit 1.0e-03" in made
        assert not FORBIDDEN.search(re.sub(r"base64,[^\"]*", "", made))
        assert "no | such <op>" not in made
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in tags.links)
    assert sum(link.startswith("data:") for link in tags.links) == 15
    assert len(set(re.findall(r'id="([^"]*)"', page))) == 3 * 4
    assert "prefers-color-scheme: dark" in page
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert Image.open(tmp_path / "new" / "folder" / name).width > 300


def test_earlier_reports_are_kept(tmp_path: Path) -> None:
    run = run_of([measured("eager", 0.1)])
    (tmp_path / "report.md").write_text("precious")
    with pytest.raises(InputError, match="holds a report already"):
        write_report([run], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]
    picture = next(p for p in write_report([run], tmp_path, force=True) if p.suffix == ".png")
    assert (tmp_path / "report.md").read_text() != "precious"
    for page in tmp_path.glob("report.*"):
        page.unlink()
    with pytest.raises(InputError, match=f"{picture.name} exists already"):
        write_report([run], tmp_path)


def test_report_refuses_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_report([full_run()], tmp_path / "file" / "folder")
    with pytest.raises(InputError, match="at least one"):
        write_report([], tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(InputError, match=r"needs jinja2: pip install 'hrnet-fast\[bench\]'"):
        write_report([full_run()], tmp_path)


def test_an_empty_run_and_one_without_figures(tmp_path: Path) -> None:
    paths = write_report([run_of([]), run_of([missing("engine", "failed", "boom")])], tmp_path)
    assert [p.name for p in paths] == ["report.md", "report.html"]
    assert "failed: boom" in paths[0].read_text()


@pytest.mark.slow
def test_pictures_of_large_and_odd_suites() -> None:
    many = [
        measured(c, 1e-6 * 4**i, case=f"$case {i}$", dtype="bfloat16") for i in range(45) for c in ("eager", "engine")
    ]
    plots = suite_plots("operators", many)
    assert [p.name for p in plots] == [f"operators-inference-{i}" for i in (1, 2, 3)]
    assert all(Image.open(io.BytesIO(p.png)).height < 2**13 for p in plots)
    colours = colours_of([measured(c, 1.0) for c in ("eager", "engine", "fused cpu", "onnxruntime", "openvino")])
    assert len(set(colours.values())) == 5


def test_scaling_suites_become_lines() -> None:
    def points(**params: object) -> list[Record]:
        return [measured("engine", 0.1 * x, params={**params, "batch": x}, case=f"{params} {x}") for x in (8, 1, 2)]

    lines = scaling_lines(
        "scaling batch", [*points(model="a"), *points(model="b"), missing("engine", "failed", params={"batch": 4})]
    )
    assert list(lines) == ["a float32", "b float32", "float32"]
    assert [x for x, _ in lines["a float32"]["engine"]] == [1, 2, 8]
    assert scaling_lines("scaling width", points()) == {}
    assert scaling_lines("inference batch", points()) == {}
    assert scaling_lines("scaling batch", [measured("engine", 1.0, params={"batch": "two"})]) == {}
    (bars,) = suite_plots("scaling width", points())
    assert bars.name == "scaling-width-inference"


def test_page() -> None:
    page = render_page(full_run())
    assert page.startswith("# Benchmarks: Test CPU 3000\n")
    assert not FORBIDDEN.search(page)
    (row,) = [line for line in page.splitlines() if "| 40.0 ms |" in line and "100 ms" in line and "wrong" in line]
    assert row.endswith("| 100 ms | 40.0 ms | wrong | failed | out of time | 2.50x |")
    assert "Not run: openvino (openvino is not installed)." in page
    for words in ("cpu; 4 threads;", "torch 2.10.0", "revision abc1234; 2026-03-04", "1.90x | 1.20x"):
        assert words in page
    noisy = render_page(run_of([measured("eager", 0.1, spread=0.3)]))
    assert "100 ms (±15%)" in noisy
    long = render_page(run_of([measured("eager", 0.1, case=f"case {i}") for i in range(13)]))
    assert "<summary>inference, float32 (13 rows)</summary>" in long
