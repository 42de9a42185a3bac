"""The command ``scripts/gpu_check.sh``: its arguments, and the order of its parts.

Imports the standard library only, so that it can report any package that the machine lacks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from gpu_check_list import Commands, full_steps, quick_steps
from gpu_check_machine import doctor, examine
from gpu_check_runner import Check


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_check: {message}; usage: {USAGE}\n")


USAGE = "scripts/gpu_check.sh OUTDIR [MINUTES] [--quick] [--dry-run] [--only STEPS] [--python PATH]"


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e4:
        raise ValueError
    return value


def main() -> int:
    """Run all steps; 0 if nothing failed."""
    parser = Parser(usage=USAGE, description=__doc__)
    parser.add_argument("out", metavar="OUTDIR", type=Path)
    parser.add_argument("minutes", metavar="MINUTES", nargs="?", type=minutes, help="for everything together")
    parser.add_argument("--quick", action="store_true", help="fewer tests, and the two most important benchmarks")
    parser.add_argument("--dry-run", action="store_true", help="rehearse without a device")
    parser.add_argument("--only", metavar="STEPS", help="comma-separated names of steps; the environment is one always")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    given = parser.parse_intermixed_args()
    python = shutil.which(given.python)
    if python is None:
        parser.error(f"--python {given.python} cannot be run")
    list_steps = quick_steps if given.quick else full_steps
    names = ["doctor", *(step.name for step in list_steps(Commands(given.out, python, {}, True), 1.0))]
    wanted = names if given.only is None else given.only.split(",")
    if not set(wanted) <= set(names):
        parser.error(f"--only {given.only}: the steps are {', '.join(names)}")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{given.out} is no folder to write to: {error.strerror}")
    out, python = given.out.resolve(), os.path.abspath(python)
    (out / "summary.txt").unlink(missing_ok=True)
    seconds = 60 * (given.minutes or (2.8 if given.quick else 9.0))
    # Tests compile kernels on the host, so they run in parallel. Benchmarks run alone.
    shutil.rmtree(out / "choices", ignore_errors=True)
    check = Check(out, seconds, max(1, min(6, (os.cpu_count() or 1) // (1 if given.dry_run else 2))))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, check.stop)
    made = Commands(out, python, examine(check, python, given.dry_run), given.dry_run)
    build, *rest = list_steps(made, seconds)
    if build.name in wanted:
        check.run(build)
    if "doctor" in wanted:
        doctor(check, python, given.dry_run)
    check.run_all([step for step in rest if step.name in wanted])
    return check.finish()


if __name__ == "__main__":
    sys.exit(main())
