"""Timing of candidates: which of several calls is fastest on this machine."""

from __future__ import annotations

import statistics
import time as clock
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hrnet_fast.errors import ImplementationError
from hrnet_fast.inference.execution.cuda_graph import settle
from hrnet_fast.inference.execution.tuning_cache import TuningResult, lookup, seconds_of, store

Candidates = Mapping[str, Callable[[], Any]]
_REASON = 300  # characters of an error that are kept


def fastest(
    key: str, candidates: Candidates, *, rounds: int = 5, time: float = 1.0, device: torch.device | None = None
) -> TuningResult:
    """Return which of `candidates` is fastest: from the cache, or measured now.

    Args:
        key: of the cache, from :func:`~hrnet_fast.inference.execution.tuning_cache.key_for`.
        candidates: calls by name. The first call of each is not timed and may prepare; a candidate that raises is out.
        rounds: of one timed call of every candidate; medians are compared.
        time: seconds after which no further round begins; there is at least one.
        device: a CUDA device is timed by events; otherwise the host's clock is read.

    Raises:
        ImplementationError: every candidate raised.
    """
    known = lookup(key, candidates)
    if known is not None:
        return known
    reasons: dict[str, str] = {}
    able = {name: call for name, call in candidates.items() if _succeeds(name, call, device, reasons)}
    if list(able) == list(candidates) and len(able) == 1:
        return TuningResult(key, next(iter(able)))
    # A lack of memory, or another thread that broke a capture, may be over next time: such a result is not stored.
    transient = any(word in reason for reason in reasons.values() for word in ("OutOfMemory", "captur"))
    samples: dict[str, list[float]] = {name: [] for name in able}
    end = clock.perf_counter() + time
    for k in range(rounds):
        if k and clock.perf_counter() > end:
            break
        for name in list(able):
            try:
                samples[name].append(_seconds(able[name], device))
            except Exception as error:  # a first call succeeded, so this may pass
                reasons[name] = _reason(error)
                transient = True
                del able[name]
    if not able:
        raise ImplementationError(f"{key}: no candidate runs here: {reasons}.")
    seconds = {name: statistics.median(samples[name]) for name in able}
    result = TuningResult(key, min(seconds.items(), key=seconds_of)[0], seconds, reasons)
    if not transient:
        store(result)
    return result


def _succeeds(name: str, call: Callable[[], Any], device: torch.device | None, reasons: dict[str, str]) -> bool:
    try:
        call()
        if device is not None and device.type == "cuda":
            settle(device)
    except Exception as error:  # libraries raise many types
        reasons[name] = _reason(error)
        return False
    return True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON]


def _seconds(call: Callable[[], Any], device: torch.device | None) -> float:
    if device is None or device.type != "cuda":
        start = clock.perf_counter()
        call()
        return clock.perf_counter() - start
    with torch.cuda.device(device):
        make: Any = torch.cuda.Event
        before, after = make(enable_timing=True), make(enable_timing=True)
        settle(device)
        before.record()
        call()
        after.record()
        settle(device)
        return float(before.elapsed_time(after)) / 1e3
