"""``hrnet-fast table``: the rows that are counted, as text and as JSON."""

from __future__ import annotations

import json

import pytest
from command_line import call

from hrnet_fast import complexity, launches


def cells(out: str) -> list[str]:
    """Those of the last row."""
    return [cell.strip() for cell in out.splitlines()[-2].strip("│").split("│")]


def test_complexity_beside_the_papers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = next(e for e in complexity.complexity_entries() if e.get("exact"))  # has no note, which takes lines
    row = complexity.complexity_row(entry)
    monkeypatch.setattr(complexity, "complexity_entries", lambda: [entry])
    monkeypatch.setattr(complexity, "complexity_row", lambda _: row)
    code, out, _ = call(capsys, "table", "complexity")
    assert code == 0
    words = cells(out)
    assert words[:3] == [row.table, row.model, "x".join(map(str, row.input_size))]
    assert words[3:7] == [f"{row.paper_params:g}", f"{row.params:.2f}", f"{row.paper_gflops:g}", f"{row.gflops:.2f}"]
    assert words[7].startswith("agrees" if row.agrees else f"{row.difference:+.1%}")
    (told,) = json.loads(call(capsys, "table", "complexity", "--json")[1])
    assert (told["model"], told["params"], told["agrees"]) == (row.model, row.params, row.agrees)


def test_launches_of_networks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row = launches.LaunchesRow("some", (256, 192), 900, 300, 150)
    monkeypatch.setattr(launches, "NETWORKS", {"some": (256, 192)})
    monkeypatch.setattr(launches, "launches_row", lambda _: row)
    code, out, _ = call(capsys, "table", "launches")
    assert code == 0
    assert cells(out) == ["some", "256x192", "900", "300", "150"]
    (told,) = json.loads(call(capsys, "table", "launches", "--json")[1])
    assert told["operator_calls"] == 900
