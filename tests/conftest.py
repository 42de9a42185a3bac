"""Settings of every test: a fixed seed, fresh memory full of NaN, one thread per worker, what is traced; skips for
missing devices.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: a graph that an earlier run compiled would hide a change of an operator's fake.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# Few compilations a run: a pool of processes that import torch first would take longer than they do.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
# Workers run side by side; the processes that tests start would otherwise take every core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import measured_process
import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cov", default=None):
        os.environ[measured_process.VARIABLE] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave the objects of imports and collection, a million, out of Python's searches for cyclic garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Trace one case of each slow test for coverage; one skip per file stands for its cases that cannot run here.

    ``--collect-only`` lists them all.
    """
    if config.option.collectonly:
        return
    seen = set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function in seen and item.get_closest_marker("slow") and not item.get_closest_marker("traced"):
            item.add_marker(pytest.mark.no_cover)
        seen.add(function)
    lacking: dict[Path, list[tuple[pytest.Item, str]]] = {}
    for item in items:
        mark = item.get_closest_marker("unavailable")
        if mark is not None:
            lacking.setdefault(item.path, []).append((item, mark.args[0]))
        elif item.get_closest_marker("device") and not torch.cuda.is_available():
            lacking.setdefault(item.path, []).append((item, "torch sees no CUDA device"))
    deselected = set()
    for found in lacking.values():
        counts = Counter(reason for _, reason in found)
        words = "; ".join(f"{count} cases: {reason}" for reason, count in counts.items())
        found[0][0].add_marker(pytest.mark.skip(reason=words), append=False)
        deselected |= {item for item, _ in found[1:]}
    if deselected:
        config.hook.pytest_deselected(items=list(deselected))
        items[:] = [item for item in items if item not in deselected]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, so that reading unwritten memory cannot pass by luck.

    PyTorch fills only while deterministic algorithms are asked for; ``warn_only`` keeps operators without one usable.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = before[2]


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, float32 convolutions without TF32: the tolerances are multiples of float32's rounding."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def _no_implementation_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HRNET_FAST_IMPL", raising=False)
