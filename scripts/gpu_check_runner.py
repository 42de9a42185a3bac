"""Runs the steps of ``scripts/gpu_check.sh`` within their time limits, and records each as it ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seconds that a step has to end after its time limit, in which pytest writes its report.
GRACE = 5.0
CHECKER_FOUND = 86  # exit code that the memory checker returns for errors


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the step and of its log.
        command: what runs.
        cap: the most seconds that it gets.
        least: with fewer seconds left it is not begun.
        needs: what it cannot do without, as `Check.lacking` names it.
        environment: added to this process's own.
        beside: whether it may run beside its neighbours of which that is true as well.
        by: when it is ended at the latest, in seconds of the whole run: something is to be left for what follows.
    """

    name: str
    command: list[str]
    cap: float
    least: float = 10.0
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    beside: bool = False
    by: float = float("inf")


class Check:
    """Runs steps within a time limit, and records each as it ends."""

    def __init__(self, out: Path, seconds: float, workers: int = 1) -> None:
        self.out = out
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.workers = workers
        # Missing requirements of the machine: the name in a step's `needs`, and the reason.
        self.lacking: dict[str, str] = {}
        self.records: list[dict[str, Any]] = []
        self.stopped = ""
        self._lock = threading.Lock()
        (out / "summary.jsonl").write_text("")

    def record(self, name: str, status: str, code: int | None = None, seconds: float = 0.0, note: str = "") -> None:
        """Write one line of summary.jsonl and flush it to disk: the next step may crash the machine."""
        line = {"name": name, "status": status, "exit_code": code, "seconds": round(seconds, 1), "note": note}
        with self._lock:
            self.records.append(line)
            with (self.out / "summary.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(shown(line), flush=True)

    def run_all(self, steps: list[Step]) -> None:
        """Run the steps in order, and consecutive parallel ones together."""
        for beside, group in itertools.groupby(steps, lambda step: step.beside):
            if beside and self.workers > 1:
                with ThreadPoolExecutor(self.workers) as pool:
                    list(pool.map(self.run, group))
            else:
                for step in group:
                    self.run(step)

    def run(self, step: Step) -> None:
        """Run one step, or record why it is skipped."""
        missing = [self.lacking[need] for need in step.needs if need in self.lacking]
        for kind in ("log", "xml", "json"):  # files of an earlier run must not be read as results of this one
            (self.out / f"{step.name}.{kind}").unlink(missing_ok=True)
        limit = min(step.cap, min(self.deadline, self.start + step.by) - time.monotonic() - GRACE)
        if self.stopped:
            self.record(step.name, "left out", note=self.stopped)
        elif missing:
            self.record(step.name, "missing", note="; ".join(missing))
        elif limit < min(step.least, step.cap):
            self.record(step.name, "left out", note="no time")
        else:
            start = time.monotonic()
            code, ended = self._execute(step, limit)
            status, note = judged(self.out, step, code)
            if ended:
                status, note = "timeout", f"ended after {limit:.0f} s; {note}".strip("; ")
                if self.stopped:
                    status, note = "failed", self.stopped
            self.record(step.name, status, code, time.monotonic() - start, note)

    def _execute(self, step: Step, limit: float) -> tuple[int | None, bool]:
        """Return the exit code, and whether the step was ended by its time limit."""
        start = time.monotonic()
        try:
            with (self.out / f"{step.name}.log").open("w") as log:
                process = subprocess.Popen(
                    step.command, cwd=ROOT, env=environment(step.environment), stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            (self.out / f"{step.name}.log").write_text(f"{error}\n")
            return 127, False
        while time.monotonic() - start < limit and not self.stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.1), False
        # SIGINT makes pytest write its reports; a process that hangs in the driver ignores it.
        for how, patience in ((signal.SIGINT, GRACE - 2), (signal.SIGKILL, 2)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # child processes of the step
        return process.poll(), True

    def stop(self, number: int, frame: object) -> None:
        """End the run at a signal, with the results so far."""
        self.stopped = f"stopped by {signal.Signals(number).name}"

    def finish(self) -> int:
        """Write summary.txt and return the exit status."""
        failed = any(r["status"] in ("failed", "timeout") for r in self.records)
        lines = [shown(r) for r in self.records]
        for r in self.records:
            lines += figures(self.out / f"{r['name']}.json")
        lines.append("FAILED" if failed or self.stopped else "nothing failed")
        (self.out / "summary.txt").write_text("\n".join(lines) + "\n")
        print(lines[-1])
        return 1 if failed or self.stopped else 0


def shown(record: dict[str, Any]) -> str:
    return f"{record['name']:24} {record['status']:8} {record['seconds']:6.1f} s  {record['note']}".rstrip()


def judged(out: Path, step: Step, code: int | None) -> tuple[str, str]:
    """Return status and note of a step that ended by itself, from its exit code and output."""
    status = "ok" if code == 0 else "failed"
    notes = []
    log = (out / f"{step.name}.log").read_text(errors="replace")
    report = counted(out / f"{step.name}.xml")
    if report is not None:
        passed, skipped, bad = report
        notes.append(f"{passed} passed, {skipped} skipped, {len(bad)} failed")
        notes += bad[:3]
        if passed == 0 and code == 0:
            status = "failed"
            notes.append("nothing ran")
    elif collected := re.findall(r"^\d[^\n]*tests? collected.*$", log, re.MULTILINE):
        notes.append(collected[-1])
    # setup.py continues without the parts that it cannot build, and prints that.
    said = [line for line in log.splitlines() if line.startswith("hrnet_fast: ")]
    if step.name == "build" and said:
        status = "failed"
        notes += [line[:300] for line in said]
    if code == CHECKER_FOUND:
        notes += re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY.*)$", log, re.MULTILINE)
    if status == "failed" and not notes:
        notes = [line[:300] for line in log.splitlines()[-1:]]
    return status, "; ".join(notes)


def counted(report: Path) -> tuple[int, int, list[str]] | None:
    """Return the passed, skipped and failed tests of a junit report, or None without one."""
    try:
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return None
    kinds = [{child.tag for child in case} for case in cases]
    bad = [str(c.get("name")) for c, k in zip(cases, kinds, strict=True) if k & {"failure", "error"}]
    skipped = sum("skipped" in k for k in kinds)
    return len(cases) - skipped - len(bad), skipped, bad


def figures(path: Path) -> Iterator[str]:
    """Return one line for each measurement of a benchmark file, without texts."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        for case in json.loads(path.read_text()).get("benchmarks", ()):
            numbers = {k: v for k, v in case["extra_info"].items() if isinstance(v, (int, float))}
            yield f"{case['name']}: {numbers}"


def environment(added: dict[str, str]) -> dict[str, str]:
    """Return this process's environment without variables that change the tests, and with named pytest plugins only."""
    unwanted = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "TRITON_INTERPRET", "HRNET_FAST_IMPL", "HRNET_FAST_BUILD")
    own = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**own, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **added}
