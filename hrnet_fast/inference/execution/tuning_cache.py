"""The tuning cache: results of measurements, kept in one JSON file of the user.

``HRNET_FAST_CACHE`` names its folder; ``off`` keeps none. A file that cannot be read or written is no error: results
are then measured again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import tempfile
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ENV_VAR = "HRNET_FAST_CACHE"
FORMAT = 2  # of the file

_lock = threading.Lock()


@dataclass(frozen=True)
class TuningResult:
    """The fastest of several candidates.

    Attributes:
        key: of the cache.
        winner: name of the fastest candidate.
        seconds: median of every candidate that ran; empty where nothing was measured.
        reasons: why a candidate did not run, by name.
        from_cache: whether it was measured earlier.
    """

    key: str
    winner: str
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    from_cache: bool = False

    def __str__(self) -> str:
        times = {name: _readable(s) for name, s in sorted(self.seconds.items(), key=seconds_of)}
        own = f" {times.pop(self.winner)}" if self.winner in times else ""
        others = [f"{name} {text}" for name, text in times.items()]
        others += [f"{name}: {reason}" for name, reason in self.reasons.items()]
        rest = f" ({'; '.join(others)})" if others else ""
        return f"{self.winner}{own}{rest}{', from the cache' * self.from_cache}"


def seconds_of(pair: tuple[str, float]) -> float:
    """Return the second item of a pair, for sorting by it."""
    return pair[1]


def _readable(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def key_for(what: str, *parts: object, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Return a key: the device, the versions of all libraries, what is measured, and `parts`."""
    words = [*_versions(device.type, device.index), what, *(str(p).replace(" ", "") for p in parts)]
    if dtype is not None:
        words.append(str(dtype).removeprefix("torch."))
    return " | ".join(words)


@functools.cache
def _versions(kind: str, index: int | None) -> tuple[str, ...]:
    import hrnet_fast

    package, framework = f"hrnet_fast {hrnet_fast.__version__}", f"torch {torch.__version__}"
    if kind == "cuda":
        try:
            triton = importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            triton = "none"
        cudnn: Any = torch.backends.cudnn
        libraries = f"cuda {torch.version.cuda} cudnn {cudnn.version()} triton {triton}"
        return torch.cuda.get_device_name(index), package, framework, libraries
    instructions = torch.backends.cpu.get_cpu_capability()
    return _processor(), package, framework, f"{instructions} {torch.get_num_threads()} threads"


def _processor() -> str:
    """Return the processor's model, or its architecture where the system does not tell the model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_file() -> Path | None:
    """Return the path of the file, or None where the cache is off."""
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


def lookup(key: str, candidates: Collection[str]) -> TuningResult | None:
    """Return the stored result of a key, if it was measured among the same candidates."""
    path = cache_file()
    entry: Any = None if path is None else _entries(path).get(key)
    try:
        seconds = {str(name): float(s) for name, s in entry["seconds"].items()}
        reasons = {str(name): str(r) for name, r in entry["reasons"].items()}
        winner = str(entry["winner"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    complete = winner in seconds and {*candidates} == {*seconds, *reasons}
    if not complete or not all(map(math.isfinite, seconds.values())):
        return None
    return TuningResult(key, winner, seconds, reasons, from_cache=True)


def store(result: TuningResult) -> None:
    """Add a result to the file."""
    path = cache_file()
    if path is None:
        return
    entry = {"winner": result.winner, "seconds": result.seconds, "reasons": result.reasons}
    with _lock, contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read again: other processes may have written since.
        content = {"format": FORMAT, "results": {**_entries(path), result.key: entry}}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tuning-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)


def _entries(path: Path) -> dict[str, Any]:
    """Return all entries of a file; none where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return {}
    results = content.get("results")
    return results if isinstance(results, dict) else {}
