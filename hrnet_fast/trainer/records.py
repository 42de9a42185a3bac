"""Records of a run: one JSON object a line in ``log.jsonl``, and ``environment.json``."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from hrnet_fast.errors import InputError, TrainingError

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "triton", "faster-coco-eval", "pycocotools")


def as_json(value: Any) -> Any:
    """Return `value` as data that JSON has: numbers that are not finite become None, others than data texts."""
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


class RunLog:
    """Appends records to a file. Each is written at once, so that a reader sees whole lines.

    Args:
        path: the file.
        size: bytes of it to keep; what is behind was written after the checkpoint that the run goes on from.

    Raises:
        InputError: another process writes it, or it cannot be opened.
    """

    def __init__(self, path: Path, size: int) -> None:
        try:
            self._file = path.open("ab")
            _lock(self._file)
        except BlockingIOError as error:
            raise InputError(f"train: another process trains in {path.parent}; wait for it or stop it.") from error
        except OSError as error:
            raise InputError(f"train: {path} cannot be written ({error.strerror}).") from error
        if self._file.tell() > size:
            self._file.truncate(size)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record.

        Raises:
            TrainingError: the disk is full, or the file cannot be written for another reason.
        """
        try:
            self._file.write((json.dumps(as_json(record)) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"{self._file.name}: cannot be written ({error.strerror}).") from error

    def size(self) -> int:
        """Return the bytes so far, which are on the disk then."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lock(file: IO[bytes]) -> None:
    """Lock a file for this process, where the system has such locks; forked workers do not hold it on.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(*error.args) from error


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a ``log.jsonl``, without a last line that is still being written.

    Raises:
        InputError: the file cannot be read, or has a line that is no record.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: is no JSON object ({error}).") from error
    return records


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Return what a run's numbers depend on beside its recipe and data: versions, device, command."""
    from hrnet_fast import __version__
    from hrnet_fast.doctor import device_name, package_version
    from hrnet_fast.implementations import ENV_VAR, build_info

    return {
        "hrnet_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "device": str(device),
        "device_name": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "extension": build_info(),
        "variables": {name: os.environ[name] for name in (ENV_VAR, "CUBLAS_WORKSPACE_CONFIG") if name in os.environ},
        "command": sys.argv,
    }
