"""Reads what the null device counts in this process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from types import SimpleNamespace

# In the order of device/counters.h.
NAMES = [
    "launches", "launches_beyond_device_0", "library_launches", "captured_nodes", "stray_operations", "memcpys",
    "to_host", "bytes_to_host", "memsets", "allocations", "frees", "host_allocations", "synchronizations", "captures",
    "captures_invalidated", "graph_instantiations", "graph_launches", "graph_kernels_launched", "last_graph_nodes",
    "last_graph_kernels", "module_loads", "errors", "live_allocations", "live_bytes", "live_host_allocations",
    "live_streams", "live_events", "live_graphs", "live_graph_execs", "live_modules",
]  # fmt: skip


def active() -> bool:
    """Whether this process runs on the null device."""
    return "NULLDEVICE_LIBRARY" in os.environ


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["NULLDEVICE_LIBRARY"])


def counters() -> SimpleNamespace:
    """Return all counters since the last reset, and the live_* gauges, as attributes."""
    values = (ctypes.c_uint64 * len(NAMES))()
    _library().nulldevice_counters(values)
    return SimpleNamespace(**dict(zip(NAMES, values, strict=True)))


def reset() -> None:
    """Set all counters to zero; the live_* gauges stay."""
    _library().nulldevice_reset()


def kernels() -> dict[str, int]:
    """Return launches since the last reset by the kernel's name."""
    library = _library()
    library.nulldevice_kernels.restype = ctypes.c_size_t
    size = library.nulldevice_kernels(None, ctypes.c_size_t(0))
    text = ctypes.create_string_buffer(size)
    library.nulldevice_kernels(text, ctypes.c_size_t(size))
    rows = (line.split(" ", 1) for line in text.raw.decode(errors="replace").splitlines() if " " in line)
    return {name: int(count) for count, name in rows}


@contextlib.contextmanager
def counting() -> Iterator[SimpleNamespace]:
    """Yield an object that has, after the block, what the block added to every counter."""
    before, found = counters(), SimpleNamespace()
    yield found
    for name, value in vars(counters()).items():
        setattr(found, name, value if name.startswith("last_") else value - getattr(before, name))
