"""Reads result files from paths, folders and git revisions, and pairs them for a comparison."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from benchmarks.reports.records import Run, load_run, parse_run
from hrnet_fast.errors import InputError

# The folder of committed result files, from the root of the repository.
RESULTS = "benchmarks/results"


def read_runs(paths: Iterable[Path]) -> dict[str, Run]:
    """Read result files, and all of a folder; return runs by path, sorted.

    Raises:
        InputError: a path is missing, a folder holds no result file, or a file is none.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            inside = set(path.glob("*.json"))
            if not inside:
                raise InputError(f"{path}: holds no result files (*.json); run the benchmarks first.")
            found |= inside
        elif path.exists():
            found.add(path)
        else:
            raise InputError(f"{path}: no such file or folder.")
    return {str(path): load_run(path) for path in sorted(found)}


def match_sides(before: str, after: str | None) -> tuple[dict[str, tuple[Run, Run]], list[str]]:
    """Read both sides of a comparison; return pairs of runs by file name, and a line for each file without a partner.

    A side is what `read_side` accepts. Two single files are a pair whatever their names. Without `after` a revision is
    compared with the working tree.

    Raises:
        InputError: a side cannot be read, or the sides have no file name in common.
    """
    if after is None and Path(before).exists():
        raise InputError(f"{before}: what is it to be compared with? Only a git revision may stand alone.")
    if after is not None and Path(before).is_file() and Path(after).is_file():
        return {Path(after).name: (load_run(Path(before)), load_run(Path(after)))}, []
    old = read_side(before)
    new = read_side(after) if after is not None else working_runs()
    other = after or "the working tree"
    alone = []
    # A single file is compared with the file of its name, and the others are of no interest.
    if not (Path(before).is_file() or (after is not None and Path(after).is_file())):
        alone = [f"{name}: only {before} has it." for name in old if name not in new]
        alone += [f"{name}: only {other} has it." for name in new if name not in old]
    matched = {name: (old[name], new[name]) for name in old if name in new}
    if not matched:
        raise InputError(f"{before} and {other} have no result file of one name: {', '.join([*old, *new])}.")
    return matched, alone


def read_side(name: str) -> dict[str, Run]:
    """Read one side of a comparison, a result file, a folder of them or a git revision; return runs by file name.

    Raises:
        InputError: it is none of these.
    """
    path = Path(name)
    if path.exists():
        return {Path(p).name: run for p, run in read_runs([path]).items()}
    if path.suffix == ".json":
        raise InputError(f"{name}: no such file.")  # no revision has such a name
    return revision_runs(name)


def working_runs() -> dict[str, Run]:
    """Read the working tree's result files, by file name.

    Raises:
        InputError: there is no repository here, or it has none.
    """
    folder = Path(_git("rev-parse", "--show-toplevel").decode().strip()) / RESULTS
    return {Path(p).name: run for p, run in read_runs([folder]).items()}


def revision_runs(revision: str) -> dict[str, Run]:
    """Read the result files that a revision of the repository has committed, by file name.

    Raises:
        InputError: no git, no repository, no such revision, or it has no result files.
    """
    _git("rev-parse", "--git-dir", what=f"{revision}: no such file, and no revision either")
    commit = _git(
        "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}",
        what=f"{revision}: no such file, and no such git revision",
    ).decode().strip()  # fmt: skip
    listed = _git("ls-tree", "--full-tree", "--name-only", "-z", commit, f"{RESULTS}/").decode().split("\0")
    paths = [path for path in listed if path.endswith(".json")]
    if not paths:
        raise InputError(f"{revision}: has no result files under {RESULTS}/.")
    return {Path(p).name: parse_run(_git("show", f"{commit}:{p}"), f"{revision}:{p}") for p in paths}


def _git(*arguments: str, what: str = "git") -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"{what}: git cannot be run ({error.strerror}).") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(f"{what} ({said[0]})." if said else f"{what}.")
    return done.stdout
