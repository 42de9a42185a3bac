"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file in the folder of `path`; it is on the disk and takes that name when the context ends.

    An interrupted or failed write keeps an earlier file of that name.

    Raises:
        OSError: the file cannot be written.
    """
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = handle.name
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        # A temporary file is private; the finished one takes the permissions that any new file here would have.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def remove_unfinished(path: Path) -> None:
    """Remove what an ended process left of :func:`written_whole` for `path`. None may be writing it."""
    for one in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            one.unlink()
