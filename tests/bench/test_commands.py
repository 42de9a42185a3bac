"""``python -m benchmarks``: output, exit codes, and errors in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import WRONG, full_run, measured, run_of, slowed

from benchmarks.__main__ import main
from benchmarks.reports.records import Run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command with arguments; return exit code, standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, argv)))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """Run the command on bad input: one line on standard error, nothing else, exit code 2."""

    def run(*argv: object) -> str:
        code, out, err = call(*argv)
        assert (code, out) == (2, ""), err
        assert err.startswith("python -m benchmarks: ")
        assert err.count("\n") == 1
        return err

    return run


def saved(path: Path, run: Run) -> Path:
    run.save(path)
    return path


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the current folder a repository with a result file committed; return what runs git in it."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "repository"
    folder.mkdir()
    _outside_of_repositories(folder, tmp_path, monkeypatch)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    saved(folder / "benchmarks/results/cpu.json", full_run())
    saved(folder / "benchmarks/results/old.json", full_run())
    git("add", ".")
    git("commit", "-m", "Results")
    return git


def _outside_of_repositories(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.resolve()))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where the tests run in a hook
        monkeypatch.delenv(name, raising=False)


@pytest.mark.no_cover
@pytest.mark.slow
def test_report_of_files_and_folders(call: Call, refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    saved(folder / "a.json", full_run())
    saved(folder / "b.json", run_of([measured("eager", 0.1)], machine={"device": "Other"}))
    code, out, _ = call("report", folder, folder / "a.json", "-o", tmp_path / "report")
    assert code == 0
    assert "report.html" in out
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("\n## ") == 2  # a file named twice is there once
    assert "holds a report already" in refused("report", folder, "-o", tmp_path / "report")
    assert call("report", folder, "-o", tmp_path / "report", "--force")[0] == 0


@pytest.mark.slow
def test_report_finds_the_projects_results(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "benchmarks/results/a.json", full_run())
    assert call("report")[0] == 0
    assert (tmp_path / "bench_report" / "report.html").exists()


def test_report_refuses_what_cannot_be(refused: Callable[..., str], tmp_path: Path) -> None:
    good = saved(tmp_path / "good.json", full_run())
    assert "no such file or folder" in refused("report", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no result files" in refused("report", tmp_path / "empty")
    assert "cannot be written" in refused("report", good, "-o", good / "below")


def field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update({name: value})


def of_record(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["records"][0].update({name: value})


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (field("schema", 2), "no result file of schema 1 (found 2)"),
        (lambda data: data.clear(), "found None"),
        (lambda data: data.pop("records"), "'records'"),
        (lambda data: data.pop("machine"), "machine"),
        (field("machine", ["cpu"]), "machine is ['cpu']"),
        (field("versions", {"torch": 2}), "versions is {'torch': 2}"),
        (field("ceilings", {"copy": "fast"}), "ceilings"),
        (field("created", 5), "created is 5"),
        (field("records", [7]), "no valid result file"),
        (of_record("surprise", 1), "surprise"),
        (of_record("value", "0.1"), "no valid result file"),
        (of_record("value", -1.0), "is no figure"),
        (of_record("status", "splendid"), "splendid"),
        (of_record("status", "wrong"), "if and only if it was measured"),
        (of_record("low", "0.1"), "record 0 is no valid result file: low is '0.1'"),
        (of_record("params", [1]), "params is [1]"),
        (of_record("rounds", True), "rounds is True"),
        (of_record("suite", None), "suite is None"),
    ],
)
def test_spoiled_files_are_refused(
    refused: Callable[..., str], tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    path = saved(tmp_path / "a.json", full_run())
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    for argv in (("report", path, "-o", tmp_path / "out"), ("compare", path, path)):
        err = refused(*argv)
        assert words in err
        assert str(path) in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"[1, 2]", b"null", b"[" * 100_000, b"%half"])
def test_what_is_no_json_is_refused(refused: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    path = saved(tmp_path / "a.json", full_run())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == b"%half" else content)
    assert "result file" in refused("report", path, "-o", tmp_path / "out")
    assert "result file" in refused("compare", path, path)


def test_pictures_without_figures_are_left_out(call: Call, refused: Callable[..., str], tmp_path: Path) -> None:
    run = run_of([measured("eager channels-last", 0.1), measured("hrnet_fast engine", 0.05)])
    results, out = saved(tmp_path / "a.json", run), tmp_path / "out"
    note = "left out: training.png, as the file has no figures of scaling training batch\n"
    assert call("pictures", results, "-o", out) == (0, f"written: {out / 'latency.png'}\n", note)
    results = saved(tmp_path / "b.json", full_run())  # of other contenders
    assert "no figures of inference or scaling training batch" in refused("pictures", results, "-o", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_pages_are_written_and_checked(call: Call, refused: Callable[..., str], tmp_path: Path) -> None:
    results, folder = saved(tmp_path / "a.json", full_run()), tmp_path / "docs"
    page = folder / "a.md"
    check = ("page", results, "-o", folder, "--check")
    stale = (1, f"{page}: has other figures than the result file\n", "")
    assert call(*check) == stale
    assert not folder.exists()
    assert call("page", results, "-o", folder) == (0, f"{page}: written\n", "")
    assert "40.0 ms" in page.read_text(encoding="utf-8")
    assert call(*check) == (0, f"{page}: up to date\n", "")
    saved(results, slowed(full_run(), 2.0))
    before = page.read_bytes()
    assert call(*check) == stale
    assert page.read_bytes() == before
    assert call("page", results, "-o", folder)[0] == 0
    assert page.read_bytes() != before
    assert sorted(p.name for p in folder.iterdir()) == ["a.md"]
    page.write_bytes(b"\xff")
    assert "cannot be brought up to date" in refused("page", results, "-o", folder)
    assert "cannot be brought up to date" in refused("page", results, "-o", results)


def test_compare_of_files(call: Call, tmp_path: Path) -> None:
    before = saved(tmp_path / "before.json", full_run())
    after = saved(tmp_path / "after.json", slowed(full_run(), 1.3))
    code, out, err = call("compare", before, after)
    assert code == 1
    assert err == ""
    assert "slower" in out
    assert "1.30x" in out
    assert call("compare", before, after, "--no-fail")[0] == 0
    assert call("compare", before, after, "--threshold", "40%")[0] == 0
    assert call("compare", before, after, "--threshold", "0.2")[0] == 1
    assert call("compare", after, before)[0] == 0
    code, out, _ = call("compare", before, before)
    assert code == 0
    assert "of 19 figures that both have none differs" in out


def test_compare_shows_no_time_for_what_is_wrong(call: Call, tmp_path: Path) -> None:
    before = saved(tmp_path / "before.json", run_of([measured("compiled", 0.05)]))
    after = saved(tmp_path / "after.json", run_of([WRONG]))
    code, out, _ = call("compare", before, after)
    assert code == 1
    assert "limit" in out
    assert "77.7" not in out
    code, out, _ = call("compare", before, after, "--json")
    assert code == 1
    data = json.loads(out)
    (change,) = data["files"][0]["changes"]
    assert data["worse"]
    assert change["kind"] == "wrong"
    assert change["before"] == {"status": "measured", "value": 0.05, "unit": "s"}
    assert change["after"]["value"] is None
    assert change["after"]["reason"] == "wrong: error 3.0e-02 > limit 1.0e-03"


def test_compare_warns_of_other_machines(call: Call, tmp_path: Path) -> None:
    before = saved(tmp_path / "before.json", full_run())
    after = saved(
        tmp_path / "after.json", run_of(full_run().records, machine={"device": "B", "kind": "cpu", "threads": 4})
    )
    code, _, err = call("compare", before, after)
    assert code == 0
    assert (
        err == "warning: after.json: times of different machines say little (device Test CPU 3000 before, B after).\n"
    )
    code, out, err = call("compare", before, after, "--json")
    assert json.loads(out)["files"][0]["differences"] == ["device Test CPU 3000 before, B after"]
    assert err == ""


def test_compare_of_folders_by_name(call: Call, refused: Callable[..., str], tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    saved(a / "cpu.json", full_run())
    saved(a / "gone.json", full_run())
    assert "no result file of one name" in refused("compare", a, saved(b / "other.json", full_run()))
    saved(b / "cpu.json", full_run())
    code, out, err = call("compare", a, b)
    assert code == 0
    assert out.startswith("cpu.json: of 19")
    assert f"note: gone.json: only {a} has it." in err
    assert f"note: other.json: only {b} has it." in err


@pytest.mark.slow
def test_compare_with_a_revision(call: Call, repository: Callable[..., None], refused: Callable[..., str]) -> None:
    results = Path("benchmarks/results")
    code, out, _ = call("compare", "HEAD")
    assert code == 0
    assert "cpu.json: of 19" in out
    assert "old.json: of 19" in out
    saved(results / "cpu.json", slowed(full_run(), 1.5))
    (results / "old.json").unlink()
    code, out, err = call("compare", "HEAD")
    assert code == 1
    assert "slower" in out
    assert err == "note: old.json: only HEAD has it.\n"
    assert call("compare", "HEAD", results / "cpu.json")[::2] == (1, "")  # a file asks for its namesake only
    repository("commit", "-a", "-m", "Slower")
    assert call("compare", "HEAD")[0] == 0
    assert call("compare", "HEAD~1", "HEAD")[0] == 1
    assert call("compare", "HEAD", "HEAD~1")[0] == 0
    assert call("compare", results / "cpu.json", "HEAD~1")[0] == 0
    for name in ("nonsense", "HEAD~9", "v1.0"):
        assert f"{name}: no such file, and no such git revision" in refused("compare", name)
    assert "Only a git revision may stand alone" in refused("compare", results / "cpu.json")
    (results / "cpu.json").write_text("{")
    repository("commit", "-a", "-m", "Broken")
    assert "HEAD:benchmarks/results/cpu.json cannot be read" in refused("compare", "HEAD", "HEAD~1")
    repository("rm", "-r", "-q", "benchmarks")
    repository("commit", "-m", "None")
    assert "HEAD: has no result files under benchmarks/results/" in refused("compare", "HEAD", "HEAD~1")
    assert "no such file or folder" in refused("compare", "HEAD~3")


def test_compare_from_below_the_root(
    call: Call, repository: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("benchmarks")
    assert call("compare", "HEAD")[0] == 0


def test_compare_refuses_what_cannot_be(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saved(tmp_path / "good.json", full_run())
    _outside_of_repositories(tmp_path, tmp_path.parent, monkeypatch)
    assert "HEAD: no such file, and no revision either (fatal: not a git repository" in refused("compare", "HEAD")
    assert "no such file" in refused("compare", good, tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    assert "holds no result files" in refused("compare", good, tmp_path / "empty")
    for threshold in ("much", "-1%", "5", "nan", "100%", ""):
        assert "no share below one" in refused("compare", good, good, "--threshold", threshold)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "git cannot be run" in refused("compare", "HEAD")


def test_help_names_all(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in ("report", "page", "pictures", "compare"))
