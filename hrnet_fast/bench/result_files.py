"""Reading result files: from paths and folders, and from a revision of the repository."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hrnet_fast.bench.records import Record, Run, parse_run
from hrnet_fast.errors import InputError

# Where the project keeps the result files that its README speaks of; a folder of the repository's root.
RESULTS = "benchmarks/results"


def read_run(path: Path) -> Run:
    """Read one result file.

    Raises:
        InputError: it cannot be read, or a field of it is not of the schema's type.
    """
    try:
        return _parse(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a result file: {error.strerror or error}.") from error


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
    return {str(path): read_run(path) for path in sorted(found)}


def match_sides(before: str, after: str | None) -> tuple[dict[str, tuple[Run, Run]], list[str]]:
    """Read what a comparison names, see `read_side`; return pairs of runs by file name, and what has no namesake.

    Two single files are compared whatever they are called. Without `after` a revision meets the working tree.

    Raises:
        InputError: a side cannot be read, or nothing of one has a namesake in the other.
    """
    if after is None and Path(before).exists():
        raise InputError(f"{before}: what is it to be compared with? Only a git revision may stand alone.")
    if after is not None and Path(before).is_file() and Path(after).is_file():
        return {Path(after).name: (read_run(Path(before)), read_run(Path(after)))}, []
    old = read_side(before)
    new = read_side(after) if after is not None else working_runs()
    other = after or "the working tree"
    alone = []
    if not (
        Path(before).is_file() or (after is not None and Path(after).is_file())
    ):  # a file asks for its namesake only
        alone = [f"{name}: only {before} has it." for name in old if name not in new]
        alone += [f"{name}: only {other} has it." for name in new if name not in old]
    matched = {name: (old[name], new[name]) for name in old if name in new}
    if not matched:
        raise InputError(f"{before} and {other} have no result file of one name: {', '.join([*old, *new])}.")
    return matched, alone


def read_side(name: str) -> dict[str, Run]:
    """Read what one side of a comparison names: a result file, a folder of them, or a git revision; by file name.

    Raises:
        InputError: it is none of these.
    """
    path = Path(name)
    if path.exists():
        return {Path(p).name: run for p, run in read_runs([path]).items()}
    if path.suffix == ".json":
        raise InputError(f"{name}: no such file.")  # nobody calls a revision so
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
    return {Path(p).name: _parse(_git("show", f"{commit}:{p}"), f"{revision}:{p}") for p in paths}


def _git(*arguments: str, what: str = "git") -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"{what}: git cannot be run ({error.strerror}).") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(f"{what} ({said[0]})." if said else f"{what}.")
    return done.stdout


def _parse(content: bytes, source: str) -> Run:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} cannot be read as a result file: {error}") from error
    run = parse_run(data, source)
    _check(run, source)
    for i, record in enumerate(run.records):
        _check(record, f"{source}: record {i}")
    return run


def _check(made: Run | Record, source: str) -> None:
    """Hold what a file says against the types of the schema: dataclasses take anything, and tables would trip later."""
    hints = typing.get_type_hints(type(made))
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if not _fits(value, hints[field.name]):
            raise InputError(f"{source} is no valid result file: {field.name} is {value!r}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is list:
        return True
    if origin is types.UnionType:
        return any(_fits(value, h) for h in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not isinstance(value, bool)
