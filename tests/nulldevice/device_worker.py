"""Runs tests on the null device: a process that has imported everything forks one child for each test.

Each test has a fresh CUDA state, and importing torch is paid once. A crash or a broken limit ends the child alone.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import device_build

MEMORY = 12 << 30  # bytes of data: what the host allocates, the device's allocations included
TEXT = 12_000  # characters of a child's output that a failure shows


class Outcome(NamedTuple):
    """How a test ended: ``"passed"``, ``"skipped"`` or ``"failed"``, and what it printed."""

    status: str
    text: str


class Worker:
    """The parent's side: one process with given settings of the null device."""

    def __init__(self, settings: dict[str, Any]) -> None:
        environment = device_build.environment(zero_scalars=True, **settings)
        self._process = subprocess.Popen(
            [sys.executable, "-u", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, test: str, folder: Path) -> Outcome:
        """Run a test by its pytest id, relative to `folder`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([test, str(folder)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return Outcome("failed", f"the worker ended with {self._process.wait()}")
        return Outcome(*json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Recorder:
    """A plugin that keeps how the one test ended."""

    status = "failed"  # a test that is not found has no report

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.status = report.outcome


def _child(test: str, folder: str, status: Path) -> None:
    import pytest

    os.chdir(folder)
    recorder = _Recorder()
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-rN", "--tb=short", test]
    pytest.main(arguments, plugins=[recorder])
    status.write_text(recorder.status)


def _forked(test: str, folder: str) -> Outcome:
    with tempfile.TemporaryDirectory() as own:
        output, status = Path(own, "output"), Path(own, "status")
        child = os.fork()
        if child == 0:
            handle = os.open(output, os.O_CREAT | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            try:
                _child(test, folder, status)
            finally:
                sys.stdout.flush()
                os._exit(0)  # no exit handlers: torch's autograd threads outlive the interpreter
        _, ended = os.waitpid(child, 0)
        text = output.read_text(errors="replace")[-TEXT:]
        if os.WIFSIGNALED(ended):
            return Outcome("failed", f"{text}\nended by {signal.Signals(os.WTERMSIG(ended)).name}")
        return Outcome(status.read_text() if status.exists() else "failed", text)


def _serve() -> None:
    import pytest  # noqa: F401
    import torch
    import triton  # noqa: F401

    import hrnet_fast.inference.execution.cuda_executor  # noqa: F401

    torch.set_num_threads(1)  # threads do not survive a fork
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    for line in sys.stdin:
        print(json.dumps(_forked(*json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve()
