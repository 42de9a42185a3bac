"""Runs tests on the null device: a pytest session that has collected all of them forks one process for each.

Each test has a fresh CUDA state, and torch is imported once. A crash or an exceeded limit ends that process alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

import device_build
import pytest

MEMORY = 12 << 30  # bytes of data: what the host allocates, the device's allocations included
TEXT = 6_000  # characters of a test's output that a failure shows


class Outcome(NamedTuple):
    """How a test ended: ``"passed"``, ``"skipped"`` or ``"failed"``, and what is to be said of it."""

    status: str
    text: str


class Worker:
    """The caller's side: one process with two null devices.

    Args:
        root: pytest's root folder.
    """

    def __init__(self, root: Path) -> None:
        environment = device_build.environment(devices=2, zero_scalars=True, verbose=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=root,
        )

    def run(self, test: str) -> Outcome:
        """Run a test by its pytest id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(test + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return Outcome("failed", f"the worker ended with {self._process.wait()}")
        return Outcome(*json.loads(answer))

    def kill(self) -> None:
        """End it with the test that it runs: its answer would be taken for the next test's."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Session:
    """A plugin whose run of the collected tests is to serve requests."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests, self._answers = requests, answers
        self._outcome = Outcome("failed", "the test has no report")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for line in self._requests:
            outcome = self._forked(items[line.strip()])
            self._answers.write(json.dumps(outcome) + "\n")
            self._answers.flush()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            text = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else report.longreprtext
            self._outcome = Outcome(report.outcome, text)

    def _forked(self, item: pytest.Item) -> Outcome:
        with tempfile.TemporaryDirectory() as own:
            output, result = Path(own, "output"), Path(own, "result")
            child = os.fork()
            if child == 0:
                handle = os.open(output, os.O_CREAT | os.O_WRONLY)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                try:
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                    result.write_text(json.dumps(self._outcome))
                finally:
                    os._exit(0)  # no exit handlers: torch's threads outlive the interpreter
            _, ended = os.waitpid(child, 0)
            printed = output.read_text(errors="replace")[-TEXT:] if output.exists() else ""
            if not result.exists():
                how = signal.Signals(os.WTERMSIG(ended)).name if os.WIFSIGNALED(ended) else "itself"
                return Outcome("failed", f"{printed}\nThe test's process was ended by {how}.")
            status, text = json.loads(result.read_text())
            return Outcome(status, f"{text}\n{printed}" if status == "failed" else text)


def _serve() -> int:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything prints is not an answer
    import torch
    import torch._dynamo  # what every test would import anew: custom operators and Triton's compiler do
    import triton.compiler  # noqa: F401
    from torch._inductor.runtime.triton_compat import triton_key

    with contextlib.suppress(ImportError):
        import timm  # noqa: F401
    triton_key()  # Triton's digest of itself, which every test would take
    torch.set_num_threads(1)  # threads do not survive a fork
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    options = ["-s", "-qq", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=short"]
    return int(pytest.main([*options, str(device_build.FOLDER)], plugins=[_Session(requests, answers)]))


if __name__ == "__main__":
    sys.exit(_serve())
