"""``hrnet-fast table``: the rows that are counted, as text and as JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from command_line import call

from hrnet_fast import complexity, launches


def cells(out: str) -> list[str]:
    """Those of the last row."""
    return [cell.strip() for cell in out.splitlines()[-2].strip("│").split("│")]


def test_complexity_beside_the_papers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    entry = complexity.complexity_entries()[0]
    row = dataclasses.replace(complexity.complexity_row(entry), note="short")  # of one line
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
    monkeypatch.setattr(launches, "NETWORKS", {"hrnet_w18_small": (64, 64)})
    row = launches.launches_row("hrnet_w18_small")
    assert row.grouped < row.steps < row.operator_calls
    monkeypatch.setattr(launches, "launches_row", lambda _: row)
    code, out, _ = call(capsys, "table", "launches")
    assert code == 0
    assert cells(out) == [row.model, "64x64", str(row.operator_calls), str(row.steps), str(row.grouped)]
    (told,) = json.loads(call(capsys, "table", "launches", "--json")[1])
    assert told == json.loads(json.dumps(dataclasses.asdict(row)))
