"""``pytest benchmarks/ --benchmark`` measures; without the option the same files run once, as smoke tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import Session

# The most important first, then the quick ones: the time budget may not suffice for all.
ORDER = (
    "bench_inference", "bench_fuse_sum", "bench_bn_act", "bench_conv_halo", "bench_upsample_conv1x1_sum",
    "bench_strided_conv_chain", "bench_grouped_conv3x3", "bench_scaling", "bench_accelerate", "bench_training",
    "bench_input_pipeline", "bench_paper_tables", "bench_detectors",
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hrnet_fast benchmarks")
    group.addoption("--benchmark", action="store_true", help="measure, instead of running each benchmark once")
    group.addoption("--device", default=None, help="cpu or cuda; the default is cuda where there is one")
    group.addoption("--dtypes", default=None, help="comma-separated: float32, bfloat16, float16")
    group.addoption("--scale", choices=("small", "paper"), default=None, help="sizes; paper is the default on cuda")
    group.addoption("--contenders", default=None, help="comma-separated parts of names; also asks for slow ones")
    group.addoption("--compile", action="store_true", help="also measure what compiles for minutes")
    group.addoption("--budget", type=float, default=9.4, help="minutes in all; what does not fit is left out")
    group.addoption("--results", type=Path, default=None, help="result file, written as figures are made")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-benchmark calls each function once when disabled.
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ranks = {name: k for k, name in enumerate(ORDER, start=1)}
    here = Path(__file__).parent
    items.sort(key=lambda i: ranks.get(i.path.stem, len(ranks) + 1) if i.path.parent == here else 0)
    for item in items:
        if item.path.parent == here:  # tests trace what benchmarks call, and on smaller networks
            item.add_marker(pytest.mark.no_cover)
    if config.getoption("--benchmark") and config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.path.parent == here:  # a case that compiles takes longer than a test may; the budget ends the run
                item.add_marker(pytest.mark.timeout(0))


def _options(config: pytest.Config) -> dict[str, Any]:
    measuring = bool(config.getoption("--benchmark"))
    cuda = measuring and torch.cuda.is_available()
    device = config.getoption("--device") or ("cuda" if cuda else "cpu")
    named = config.getoption("--dtypes")
    dtypes = named.split(",") if named else ["float32", "bfloat16"] if device == "cpu" else ["float16", "bfloat16"]
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise pytest.UsageError(f"--device {device}: this machine has {'cpu, cuda' if cuda else 'cpu'}.")
    if not set(dtypes) <= set(DTYPES):
        raise pytest.UsageError(f"--dtypes {named}: accepted are {', '.join(DTYPES)}.")
    contenders = config.getoption("--contenders")
    return {
        "device": device,
        "dtypes": tuple(getattr(torch, d) for d in dtypes),
        "scale": config.getoption("--scale") or ("paper" if device == "cuda" else "small"),
        "contenders": contenders.split(",") if contenders else None,
        "compile": bool(config.getoption("--compile")),
        "budget": config.getoption("--budget"),
        "results": config.getoption("--results"),
    }


@pytest.fixture
def measuring(request: pytest.FixtureRequest) -> bool:
    """Whether to measure; smoke tests take smaller inputs."""
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture
def within_budget(session: Session) -> None:
    """Skip a benchmark when the time budget is spent, for those that write no record of it."""
    if session.measuring and session.left() < 0:
        pytest.skip("the time budget is spent")


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    """The run: its options, device and result file."""
    return Session(_options(request.config), bool(request.config.getoption("--benchmark")))
