"""README and docs: Python blocks run, links exist, figures equal the committed results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from upstreams import mmcv_ext

import hrnet_fast as hf
from benchmarks.reports.learning_page import write_learning_page
from benchmarks.reports.page import write_page
from benchmarks.reports.readme_pictures import draw_pictures
from benchmarks.reports.records import load_run
from hrnet_fast.inference import profile

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "integrations").glob("*.md")])]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


mmcv_ext.install()  # before a page imports mmpose


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one process, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profile, "ceilings", lambda *_: profile.Ceilings(1e10, 1e11))  # to measure takes a second
    names: dict[str, Any] = {}
    for i, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {i + 1}", "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs" / "benchmarks").glob("*.md"))], ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 12 * 1024


@pytest.mark.parametrize("results", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda p: p.stem)
def test_pages_of_figures_are_those_of_the_result_files(results: Path) -> None:
    run = load_run(results)
    assert not run.revision.endswith("-dirty")
    page = ROOT / "docs" / "benchmarks" / f"{results.stem}.md"
    assert not write_page(run, page, check=True), "run: python -m benchmarks page"


def test_the_page_of_trainings_is_that_of_its_results() -> None:
    [results] = (ROOT / "benchmarks" / "results" / "learning").glob("*.json")
    page, picture = ROOT / "docs" / "benchmarks" / "learning.md", ROOT / "docs" / "images" / "learning.png"
    assert picture.exists()
    assert not write_learning_page(results, page, picture, check=True), "run: python -m benchmarks learning-page"


@pytest.mark.slow
def test_the_pictures_are_drawn_from_a_result_file(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results" / "xeon-amx-2-cores.json"
    for path in draw_pictures(load_run(results), tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "docs" / "images" / path.name).is_file()


def test_the_table_of_families_is_complete() -> None:
    """Every family has a row, which says how its heatmaps decode."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    told = {name: row for row in rows if len(row) == 5 for name in re.findall(r"`([a-z_0-9]+)`", row[0])}
    assert set(told) == set(hf.FAMILIES)
    for name, family in hf.FAMILIES.items():
        decodes = "" if family.keypoints in (None, "none") else f"`{family.keypoints}`"
        assert told[name][3] == decodes, name
    short = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in hf.FAMILIES if f"`{name}`" not in short and name not in ("hrnet_fast", "v1h")] == []
