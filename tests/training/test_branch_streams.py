"""Branches on parallel streams: results and gradients are those of one stream, and events order the streams."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_networks import gradients, image, tiny, train_once

import hrnet_fast as hf
from hrnet_fast.training import branch_streams


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Streams and events in name only: (stream, what it does)."""
    found: list[tuple[str, str]] = []
    current = ["main"]

    def stream_of(name: str) -> Any:
        return SimpleNamespace(name=name, wait_event=lambda event: found.append((name, f"waits for {event.at}")))

    def event() -> Any:
        made = SimpleNamespace(at="")
        made.record = lambda stream: setattr(made, "at", stream.name)
        return made

    @contextlib.contextmanager
    def on(stream: Any) -> Iterator[None]:
        current.append(stream.name)
        found.append((stream.name, "runs"))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream_of(current[-1]))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(branch_streams, "side_streams", lambda d, m, count: [stream_of(f"s{k}") for k in range(count)])
    monkeypatch.setattr(branch_streams, "new_event", event)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["fast", "lean", "min"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_and_gradients_are_the_same(log: list[Any], memory: str, layout: torch.memory_format) -> None:
    model = hf.accelerate(tiny("v2").to(memory_format=layout), memory=memory)  # type: ignore[call-overload]
    other = copy.deepcopy(model)
    x = image(64, 64, batch=2).contiguous(memory_format=layout)
    plain = train_once(other, x)
    assert log == []
    with branch_streams.parallel_branches():
        (found,) = train_once(model, x)
    assert torch.equal(found, plain[0])
    for (name, own), expected in zip(gradients(model).items(), gradients(other).values(), strict=True):
        assert torch.equal(own, expected), name
    assert {name for name, what in log if what == "runs"} == {"s0", "s1", "s2", "s3"}


def test_streams_fork_and_join(log: list[Any]) -> None:
    xs = [torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)]
    with branch_streams.parallel_branches():
        branch_streams.run_branches([lambda x: x + 1, lambda x: x + 2], xs)
    assert log == [
        ("s0", "waits for main"), ("s0", "runs"), ("s1", "waits for main"), ("s1", "runs"),
        ("main", "waits for s0"), ("main", "waits for s1"),
    ]  # fmt: skip


def test_the_join_of_backward_has_all_gradients(log: list[Any]) -> None:
    """One node stands behind all branches. Where a frozen input would keep a branch out of it, there is one stream."""
    a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    branches = [lambda x: 2 * x, lambda x: 3 * x]
    with branch_streams.parallel_branches():
        x, y = branch_streams.run_branches(branches, [a, b])
        nodes = {out.grad_fn.next_functions[0][0] for out in (x, y)}  # type: ignore[union-attr]
        assert [type(node).__name__ for node in nodes] == ["_ForkBackward"]
        (x + y).sum().backward()
        assert (float(a.grad), float(b.grad)) == (2, 3)  # type: ignore[arg-type]
        log.clear()
        x, y = branch_streams.run_branches(branches, [a, b.detach()])
        assert (log, y.requires_grad) == ([], False)
        with torch.no_grad():
            branch_streams.run_branches(branches, [a, b.detach()])
        assert log
