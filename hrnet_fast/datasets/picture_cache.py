"""``PictureCache``: decoded pictures in memory-mapped files, shared by all workers and processes of a machine."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hrnet_fast.datasets.matlab_files import matlab_place
from hrnet_fast.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Of an entry: a mark with the format's version; size and time in ns of the source file; height, width, channels (0 for
# a map of classes), and the type's name.
_HEADER = struct.Struct("<8s2q3q16s")
_MARK = b"HFPICT01"
_UNFINISHED = ".hrnet_fast_"  # what names of entries that are being written start with
_USAGE = struct.Struct("<3q")  # bytes, entries, and whether one did not fit


class PictureCache:
    """Arrays of bytes that take long to decode, kept in files that workers map instead of decoding again.

    An entry is written under another name and renamed, so that it is whole or absent. A source file of another size or
    time of modification is decoded again. What does not fit is decoded each time. The processes of a machine agree by
    locks on files; the folder has to be on a local disk or in memory.

    Args:
        folder: of the entries; it is made.
        limit: bytes of all entries. While workers write, there may be one more of each.
        temporary: remove the folder when the last process closes the cache.

    Raises:
        InputError: the folder cannot be made or is another user's, or the system has no such locks.
    """

    def __init__(self, folder: Path, limit: int, temporary: bool = False) -> None:
        if fcntl is None:
            raise InputError("A cache of pictures needs file locks, which this system lacks; leave data.cache off.")
        self.folder, self.limit, self.temporary = folder, limit, temporary
        self._usage = folder / "usage"
        self._users: IO[bytes] | None = self._joined()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_users": None}  # a worker is no user: it ends with its process

    def array(self, path: str, kind: str, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return what was decoded of a file: mapped from its entry, or decoded now.

        Args:
            path: the source file.
            kind: what `decode` depends on beside the file.
            decode: returns [H, W] or [H, W, C]; its errors are the caller's.
        """
        try:
            place = matlab_place(path)
            found = os.stat(path if place is None else place[0])
        except OSError:
            return decode()
        name = hashlib.blake2b(f"{kind}\n{os.path.abspath(path)}".encode(), digest_size=16).hexdigest()
        entry, stamp = self.folder / name, (found.st_size, found.st_mtime_ns)
        values = _mapped(entry, stamp)
        if values is None:
            values = decode()
            # Where the disk is full or the folder gone, decoding goes on without the cache.
            with contextlib.suppress(OSError):
                self._keep(entry, stamp, values)
        return values

    def explain(self) -> str:
        """Return one sentence: how many arrays are kept, and whether all were."""
        used, entries, refused = _read_usage(self._usage)
        text = f"data.cache keeps {entries} decoded pictures and masks in {used / 2**30:.2f} GiB"
        return f"{text}; the others did not fit and are decoded in every epoch" if refused else text

    def close(self) -> None:
        """Leave the cache; the last process removes a temporary one."""
        if self._users is None:
            return
        users, self._users = self._users, None
        with users:
            if not self.temporary:
                return
            # Workers inherited this lock: it is released, not merely closed.
            fcntl.flock(users, fcntl.LOCK_UN)
            with contextlib.suppress(OSError), (self.folder / "users").open("rb") as last:
                fcntl.flock(last, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.folder, ignore_errors=True)

    def _joined(self) -> IO[bytes]:
        """Return a file that is locked, together with the other processes', for as long as the cache is in use."""
        path = self.folder / "users"
        try:
            while True:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self.temporary and self.folder.stat().st_uid != os.getuid():
                    raise InputError(f"data.cache: {self.folder} is another user's; remove it or give a cache_folder.")
                users = path.open("ab")
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._count_anew()
                fcntl.flock(users, fcntl.LOCK_SH)
                with contextlib.suppress(FileNotFoundError):  # the last user before removed it meanwhile
                    if os.path.samestat(os.fstat(users.fileno()), path.stat()):
                        return users
                users.close()
        except OSError as error:
            raise InputError(f"data.cache: {self.folder} cannot be written ({error.strerror}).") from error

    def _count_anew(self) -> None:
        """Count what earlier runs left, and remove what is unfinished or beyond the limit; no other process is here.

        Only files that a cache wrote are removed, whatever else is in the folder.
        """
        used = entries = 0
        for one in [*self.folder.iterdir()]:
            if one.is_symlink() or not one.is_file():
                continue
            if one.name.startswith(_UNFINISHED):
                one.unlink()
            elif re.fullmatch("[0-9a-f]{32}", one.name):
                size = one.stat().st_size
                if used + size > self.limit and _marked(one):
                    one.unlink()
                else:
                    used, entries = used + size, entries + 1
        self._usage.write_bytes(_USAGE.pack(used, entries, 0))

    def _keep(self, entry: Path, stamp: tuple[int, int], values: NDArray[Any]) -> None:
        """Write an entry, unless it does not fit or another process was quicker."""
        values = np.ascontiguousarray(values)
        shape = (*values.shape, 0)[:3]
        header = _HEADER.pack(_MARK, *stamp, *shape, values.dtype.str.encode())
        size = len(header) + values.nbytes
        if _read_usage(self._usage)[0] + size > self.limit:
            self._publish(None, entry, stamp, size)
            return
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=_UNFINISHED)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(header)
                file.write(values.data)
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine may leave the name without the bytes
            self._publish(temporary, entry, stamp, size)
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path | None, entry: Path, stamp: tuple[int, int], size: int) -> None:
        """Give a written file its name and count it, in one process at a time; None counts that one does not fit."""
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used, entries, refused = _read_usage(self._usage)
            before = entry.stat().st_size if entry.exists() else 0
            if temporary is None or used + size - before > self.limit:
                refused = 1
            elif before and _mapped(entry, stamp) is not None:
                return
            else:
                os.replace(temporary, entry)
                used, entries = used + size - before, entries + (not before)
            with self._usage.open("rb+") as file:
                file.write(_USAGE.pack(used, entries, refused))


def _read_usage(path: Path) -> tuple[int, int, int]:
    try:
        used, entries, refused = _USAGE.unpack(path.read_bytes())
    except (OSError, struct.error):  # removed by another program
        return 0, 0, 0
    return used, entries, refused


def _marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MARK)) == _MARK


def _mapped(entry: Path, stamp: tuple[int, int]) -> NDArray[Any] | None:
    """Return the array of an entry of this source, as memory that is private where it is written to, or None."""
    try:
        with entry.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mark, size, time, height, width, channels, kind = _HEADER.unpack_from(memory)
        if mark != _MARK or (size, time) != stamp:
            return None
        # An array of another length than the header says raises ValueError.
        values = np.frombuffer(memory, np.dtype(kind.rstrip(b"\0").decode()), offset=_HEADER.size)
        shape = (height, width, channels) if channels else (height, width)
        return values.reshape(shape) if min(shape) > 0 else None
    except (OSError, ValueError, TypeError, struct.error):  # there is none, or it is damaged
        return None


@contextlib.contextmanager
def opened_cache(limit: int, folder: str | None, owner: Path) -> Iterator[PictureCache | None]:
    """Yield a cache for a run, or None for a limit of 0.

    Args:
        limit: bytes.
        folder: entries are kept from run to run in its folder ``hrnet_fast_pictures``; None: in a temporary folder
            that the run's processes share.
        owner: the run's folder, from which the temporary one has its name.
    """
    if not limit:
        yield None
        return
    name = hashlib.blake2b(os.fsencode(owner.absolute()), digest_size=8).hexdigest()
    place = Path(tempfile.gettempdir()) / f"hrnet_fast_pictures_{name}"
    if folder is not None:
        place = Path(folder) / "hrnet_fast_pictures"
    cache = PictureCache(place, limit, temporary=folder is None)
    try:
        yield cache
    finally:
        cache.close()
