"""The marker ``nulldevice``: a test that has it runs in a process on the null device, not where it is collected."""

from __future__ import annotations

import device_build
import device_counters
import pytest
import torch
from device_worker import Worker

WORKERS = pytest.StashKey[list[Worker]]()  # of this session: one, once a test needs it


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "nulldevice: runs in a process whose two CUDA devices do nothing (tests/nulldevice)"
    )
    config.stash[WORKERS] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    for worker in config.stash[WORKERS]:
        worker.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Its tests come first, and so to one worker: the process that serves them takes seconds to start.

    Where there is no null device, one test stands for all, and its skip says why.
    """
    items.sort(key=lambda item: item.get_closest_marker("nulldevice") is None)
    marked = [item for item in items if item.get_closest_marker("nulldevice")]
    reason = device_build.unsupported_reason()
    if device_counters.active() or reason is None or not marked:
        return
    marked[0].add_marker(pytest.mark.skip(reason=f"no null device, {len(marked)} tests are left out: {reason}"))
    left_out = set(marked[1:])
    config.hook.pytest_deselected(items=marked[1:])
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("nulldevice") is None or device_counters.active():
        return None
    workers = pyfuncitem.config.stash[WORKERS]
    if not workers:
        workers.append(Worker(pyfuncitem.config.rootpath))
    try:
        status, text = workers[0].run(pyfuncitem.nodeid)
    except BaseException:  # a time limit or an interrupt
        workers.pop().kill()
        raise
    if status == "skipped":
        pytest.skip(text)
    if status != "passed":
        pytest.fail(text, pytrace=False)
    return True


@pytest.fixture(autouse=True)
def _as_users_run(_poisoned_memory: None) -> None:
    """Without the deterministic algorithms that the poisoned memory of other tests needs: captures refuse some."""
    torch.use_deterministic_algorithms(False)
