"""Reading and writing checkpoint files: never unpickling objects, never leaving half a file."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.errors import CheckpointError

PICKLE_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
SAFETENSORS = ".safetensors"
# What the restricted unpickler says of objects; of files that are no pickle at all it says other things.
_OBJECTS = ("Unsupported global", "Unsupported class", "Trying to", "Can only")


def _checked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (*PICKLE_SUFFIXES, SAFETENSORS):
        accepted = ", ".join((*PICKLE_SUFFIXES, SAFETENSORS))
        raise CheckpointError(f"{path}: not a checkpoint's name; files ending in {accepted} are accepted.")
    return suffix


@contextlib.contextmanager
def _numpy_scalars_allowed() -> Iterator[None]:
    """Let the restricted unpickler read the numpy scalars that training loops leave beside the weights."""
    try:
        import numpy as np
    except ImportError:
        yield
        return
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    # Files written beside numpy 1 know the function under its older name.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")]
    with torch.serialization.safe_globals([*names, np.dtype, *dtypes]):
        yield


def read_file(path: str | os.PathLike[str]) -> Any:
    """Return what a ``.pth``, ``.pt``, ``.pth.tar`` or ``.safetensors`` file holds, tensors on the CPU.

    Raises:
        CheckpointError: no such file, another kind of file, a truncated or corrupt one, or one that pickles objects
            other than tensors and plain containers.
    """
    path = Path(path)
    suffix = _checked_suffix(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    try:
        if suffix == SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path)
        with _numpy_scalars_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(words in str(error) for words in _OBJECTS):
            raise _corrupt(path, error) from error
        raise CheckpointError(
            f"{path}: holds pickled Python objects, which could run code when read, and is refused. Where the file "
            "comes from a source you trust, open it once yourself with torch.load(..., weights_only=False), save its "
            "model's state_dict() with torch.save, and load that."
        ) from error
    except Exception as error:  # zip, struct, OS and safetensors errors: all mean that the file cannot be read
        raise _corrupt(path, error) from error


def _corrupt(path: Path, error: Exception) -> CheckpointError:
    detail = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"{path}: cannot be read ({detail}); the file is truncated or no checkpoint. Fetch it again."
    )


def save_checkpoint(state: Mapping[str, Tensor], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a state_dict to a ``.pth``, ``.pt`` or ``.safetensors`` file, whole or not at all.

    The file is written beside its destination and moved there when complete, so an interrupted or failed write
    leaves what was there before.

    Raises:
        CheckpointError: another suffix, a missing folder, a full disk, or an existing file without `overwrite`.
    """
    path = Path(path)
    suffix = _checked_suffix(path)
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path}: exists already; give another name, or overwrite it explicitly.")
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = handle.name
            if suffix == SAFETENSORS:
                from safetensors.torch import save

                handle.write(save(_apart(state)))
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
        raise CheckpointError(f"{path}: cannot be written ({str(error).splitlines()[0]}).") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense CPU tensors of which no two share memory: safetensors writes only such."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        out[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return out
