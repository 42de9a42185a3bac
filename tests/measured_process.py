"""Coverage of processes that tests start: ``start()`` in their program, before it imports the package.

The null device's processes leave it out: they are many, and tracing would double their time.
"""

from __future__ import annotations

import atexit
import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
VARIABLE = "HRNET_FAST_COVERAGE"  # set by conftest.py where the run measures coverage


def start() -> None:
    if VARIABLE not in os.environ:
        return
    import coverage

    measured = coverage.Coverage(
        data_file=str(ROOT / ".coverage"), data_suffix=True, config_file=str(ROOT / "pyproject.toml")
    )
    measured.start()
    atexit.register(measured.save)
    atexit.register(measured.stop)  # before it
