"""Reading and writing checkpoint files: never running what they hold, never leaving half a file."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints.containers import read_torch_file
from hrnet_fast.errors import CheckpointError, shown

PICKLE_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
SAFETENSORS = ".safetensors"


def _checked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (*PICKLE_SUFFIXES, SAFETENSORS):
        accepted = ", ".join((*PICKLE_SUFFIXES, SAFETENSORS))
        raise CheckpointError(f"{path}: not a checkpoint's name; files ending in {accepted} are accepted.")
    return suffix


def read_file(path: str | os.PathLike[str]) -> Any:
    """Return what a ``.pth``, ``.pt``, ``.pth.tar`` or ``.safetensors`` file holds, tensors on the CPU.

    No code of the file runs and nothing it names is imported: an object that is no tensor or plain data is an
    :class:`~hrnet_fast.checkpoints.inert.Inert` record of its name, arguments and attributes. Members of zip files
    (``torch.save`` since torch 1.6) are compared with their checksums; older files and ``.safetensors`` have none.

    Raises:
        CheckpointError: no such file, one that may not be read, another kind of file, a truncated or corrupt one, or
            one whose package is not installed.
    """
    path = Path(path)
    suffix = _checked_suffix(path)
    try:
        found = stat.S_ISREG(path.stat().st_mode)
        if found:
            with path.open("rb"):
                pass
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        found = False
    except OSError as error:  # told apart from what a broken file's content raises below
        raise CheckpointError(
            f"{path}: cannot be opened ({_first_line(error)}). Make the file and its folders readable to this user, or "
            "give the path of a readable copy."
        ) from error
    if not found:
        raise CheckpointError(f"{path}: no such file.")
    safetensors = _safetensors(path) if suffix == SAFETENSORS else None
    try:
        return read_torch_file(path) if safetensors is None else safetensors.load_file(path)
    except Exception as error:  # zip, pickle, struct and safetensors errors: all mean that the content is broken
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read ({_first_line(error)}); the file is truncated or no checkpoint. Fetch it again."
    )


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]


def _safetensors(path: Path) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(
            f"{path}: {SAFETENSORS} files need the package safetensors, which cannot be imported "
            f"({_first_line(error)}). Install it (pip install safetensors), or use a .pth file."
        ) from error
    return safetensors.torch


def save_checkpoint(state: Mapping[str, Tensor], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a state_dict to a ``.pth``, ``.pt`` or ``.safetensors`` file, whole or not at all.

    The file is written beside its destination and moved there when complete, so an interrupted or failed write
    leaves what was there before.

    Raises:
        CheckpointError: no mapping of names to tensors, another suffix, a missing folder, a full disk, an existing file
            without `overwrite`, or `.safetensors` without its package.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"save_checkpoint: {shown(path)} given; accepted is a file's path.")
    path = Path(path)
    suffix = _checked_suffix(path)
    _check_state(state)
    if os.path.exists(path) and not overwrite:  # False, not an error, in a folder that may not be searched
        raise CheckpointError(f"{path}: exists already; give another name, or overwrite it explicitly.")
    safetensors = _safetensors(path) if suffix == SAFETENSORS else None
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = handle.name
            if safetensors is not None:
                handle.write(safetensors.save(_without_shared_memory(state)))
            else:
                torch.save(dict(state), handle)
            handle.flush()
            os.fsync(handle.fileno())
        # A temporary file is private; the finished one takes the permissions that any new file here would have.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
        raise CheckpointError(f"{path}: cannot be written ({_first_line(error)}).") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _check_state(state: object) -> None:
    if not isinstance(state, Mapping):
        hint = " For a module, pass its state_dict()." if hasattr(state, "state_dict") else ""
        raise CheckpointError(
            f"save_checkpoint: {shown(state)} given; accepted is a mapping of names to tensors.{hint}"
        )
    odd = [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if odd:
        raise CheckpointError(
            f"save_checkpoint: {len(odd)} entries are no tensors under a name (first: {shown(odd[0])}); accepted is a "
            "mapping of names to tensors."
        )


def _without_shared_memory(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense CPU tensors of which no two share memory: safetensors writes only such."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        out[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return out
