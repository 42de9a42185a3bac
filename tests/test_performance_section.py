"""The README's figures are those of the committed result files."""

from __future__ import annotations

from pathlib import Path

from hrnet_fast.bench.readme import update_readme
from hrnet_fast.bench.records import load_run

ROOT = Path(__file__).parents[1]


def test_the_readme_says_what_was_measured() -> None:
    runs = [load_run(path) for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    assert runs
    assert all(not run.revision.endswith("-dirty") for run in runs)
    assert not update_readme(ROOT / "README.md", runs, check=True), (
        "run: hrnet-fast bench report benchmarks/results/*.json --readme README.md"
    )
