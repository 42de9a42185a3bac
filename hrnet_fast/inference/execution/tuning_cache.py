"""Measured choices: which of several ways to compute one thing is fastest here, measured once and remembered in a file.

The file is ``tuning_cache.json`` in ``$HRNET_FAST_CACHE``, ``$XDG_CACHE_HOME/hrnet_fast`` or ``~/.cache/hrnet_fast``;
``HRNET_FAST_CACHE=off`` keeps none. A cache that cannot be read or written only costs measuring again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import tempfile
import threading
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hrnet_fast.errors import ImplementationError
from hrnet_fast.inference.execution.cuda_graph import settle

ENV_VAR = "HRNET_FAST_CACHE"
FORMAT = 1  # of the file
_REASON = 300  # characters of an error that are kept

_lock = threading.Lock()


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        key: what was chosen for whom.
        winner: name of the fastest candidate.
        seconds: median of every candidate that ran; empty where only one could, and nothing was measured.
        reasons: why a candidate did not run, by name.
        from_cache: whether it was measured earlier.
    """

    key: str
    winner: str
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    from_cache: bool = False

    def __str__(self) -> str:
        others = [
            f"{name} {_readable(s)}" for name, s in sorted(self.seconds.items(), key=_second) if name != self.winner
        ]
        others += [f"{name}: {reason}" for name, reason in self.reasons.items()]
        mine = f" {_readable(self.seconds[self.winner])}" if self.winner in self.seconds else ""
        rest = f" ({'; '.join(others)})" if others else ""
        return f"{self.winner}{mine}{rest}{', remembered' * self.from_cache}"


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _readable(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def fastest(
    key: str,
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 5,
    time: float = 1.0,
    device: torch.device | None = None,
) -> Choice:
    """Return which of `candidates` is fastest: remembered under `key`, or measured now.

    Args:
        key: of the cache, as :func:`key_for` makes it: everything that the answer depends on.
        candidates: calls by name. The first call of each is not timed, and may prepare; one that raises there is out.
        rounds: in which all take turns; the median of each counts.
        time: seconds after which no further round begins; there is at least one.
        device: where they run. On CUDA events are timed; None is the host's clock.

    Raises:
        ImplementationError: none of the candidates runs.
    """
    known = _remembered(key, candidates)
    if known is not None:
        return known
    able, reasons = _able(candidates, device)
    if not able:
        raise ImplementationError(f"{key}: no candidate runs here: {reasons}.")
    if len(able) == 1 and len(candidates) == 1:
        return Choice(key, next(iter(able)))
    taken: dict[str, list[float]] = {name: [] for name in able}
    passing = any("OutOfMemory" in reason for reason in reasons.values())
    start = clock.perf_counter()
    for _ in range(rounds):
        for name in list(able):
            try:
                taken[name].append(_timed(able[name], device))
            except Exception as error:  # it ran once, and may lack memory now
                reasons[name] = _reason(error)
                passing = True
                del able[name]
        if clock.perf_counter() - start > time:
            break
    seconds = {name: statistics.median(taken[name]) for name in able}
    if not seconds:
        raise ImplementationError(f"{key}: no candidate runs here: {reasons}.")
    found = Choice(key, min(seconds.items(), key=_second)[0], seconds, reasons)
    if not passing:  # what failed for want of memory may run next time
        _remember(found)
    return found


def key_for(what: str, *parts: object, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Return the key of a choice: the device, all versions that matter, what is chosen, and `parts`."""
    words = [*_versions(device.type, device.index), what, *(str(p).replace(" ", "") for p in parts)]
    if dtype is not None:
        words.append(str(dtype).removeprefix("torch."))
    return " | ".join(words)


@functools.cache
def _versions(kind: str, index: int | None) -> tuple[str, ...]:
    import hrnet_fast

    ours = f"hrnet_fast {hrnet_fast.__version__}"
    if kind == "cuda":
        try:
            triton = importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            triton = "none"
        cudnn: Any = torch.backends.cudnn
        library = f"cuda {torch.version.cuda} cudnn {cudnn.version()} triton {triton}"
        return torch.cuda.get_device_name(index), ours, f"torch {torch.__version__}", library
    instructions = torch.backends.cpu.get_cpu_capability()
    return _processor(), ours, f"torch {torch.__version__}", f"{instructions} {torch.get_num_threads()} threads"


def _processor() -> str:
    """The processor's model where the system tells, for what is fastest differs between them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _able(
    candidates: Mapping[str, Callable[[], Any]], device: torch.device | None
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    able, reasons = {}, {}
    for name, call in candidates.items():
        try:
            call()
            _synchronize(device)
            able[name] = call
        except Exception as error:  # whatever a library raises
            reasons[name] = _reason(error)
    return able, reasons


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_REASON]


def _timed(call: Callable[[], Any], device: torch.device | None) -> float:
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            make: Any = torch.cuda.Event
            before, after = make(enable_timing=True), make(enable_timing=True)
            settle(device)
            before.record()
            call()
            after.record()
            settle(device)
            return float(before.elapsed_time(after)) / 1e3
    start = clock.perf_counter()
    call()
    return clock.perf_counter() - start


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        settle(device)


def cache_file() -> Path | None:
    """Return the cache's path, or None where it is off."""
    given = os.environ.get(ENV_VAR)
    if given and given.lower() == "off":
        return None
    if given:
        return Path(given).expanduser() / "tuning_cache.json"
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "hrnet_fast" / "tuning_cache.json"
    except RuntimeError:  # there is no home
        return None


def _remembered(key: str, candidates: Mapping[str, Any]) -> Choice | None:
    path = cache_file()
    entry: Any = None if path is None else _read(path).get(key)
    try:
        seconds = {str(name): float(s) for name, s in entry["seconds"].items()}
        reasons = {str(name): str(r) for name, r in entry["reasons"].items()}
        winner = str(entry["winner"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    if not all(map(math.isfinite, seconds.values())):
        return None
    # Measured among others than there are now, it says nothing.
    if winner not in seconds or set(candidates) != {*seconds, *reasons}:
        return None
    return Choice(key, winner, seconds, reasons, from_cache=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    choices = content.get("choices")
    return choices if isinstance(choices, dict) else {}


def _remember(choice: Choice) -> None:
    path = cache_file()
    if path is None:
        return
    entry = {"winner": choice.winner, "seconds": choice.seconds, "reasons": choice.reasons}
    temporary = None
    with _lock, contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read again: other processes may have written since.
        content = {"format": FORMAT, "choices": {**_read(path), choice.key: entry}}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".choices-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
