"""``pytest benchmarks/ --benchmark`` measures; without the option the same files run once, as smoke tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure, instead of running each benchmark once")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-benchmark calls each function once when disabled.
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


@pytest.fixture
def measuring(request: pytest.FixtureRequest) -> bool:
    """Whether times are wanted: smoke tests may then take smaller inputs."""
    return bool(request.config.getoption("--benchmark"))
