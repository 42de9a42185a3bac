"""Reading and writing of checkpoint files. Reading runs none of their code, and writing is atomic."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrnet_fast.checkpoints.containers import read_torch_file
from hrnet_fast.detection.detector_config import DetectorConfig
from hrnet_fast.errors import CheckpointError, shown
from hrnet_fast.whole_files import written_whole

PICKLE_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
SAFETENSORS = ".safetensors"
DETECTOR_SETTINGS = "detector_config"  # the entry beside a detector's weights


def _checked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (*PICKLE_SUFFIXES, SAFETENSORS):
        accepted = ", ".join((*PICKLE_SUFFIXES, SAFETENSORS))
        raise CheckpointError(f"{path}: not a checkpoint file name; accepted are files ending in {accepted}.")
    return suffix


def read_file(path: str | os.PathLike[str]) -> Any:
    """Return the content of a ``.pth``, ``.pt``, ``.pth.tar`` or ``.safetensors`` file, with tensors on the CPU.

    No code of the file runs, and no module that it names is imported. An object other than tensors and plain data
    becomes an :class:`~hrnet_fast.checkpoints.inert.Inert` record of its name, arguments and attributes. Members of
    zip files (``torch.save`` since torch 1.6) are verified by checksum; older files and ``.safetensors`` have none.

    Raises:
        CheckpointError: the file does not exist, cannot be read, has another suffix, is truncated or corrupt, or needs
            a package that is not installed.
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
    except OSError as error:  # permissions, not a broken file
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
        f"{path}: cannot be read ({_first_line(error)}); the file is truncated or no checkpoint. Download it again."
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


def save_checkpoint(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    detector: DetectorConfig | None = None,
) -> None:
    """Write a state_dict to a ``.pth``, ``.pt`` or ``.safetensors`` file atomically.

    A temporary file in the same folder is renamed to `path` when complete, so an interrupted or failed write keeps an
    earlier file.

    Args:
        state: names to tensors.
        path: the file.
        overwrite: replace an existing file.
        detector: settings that ``load_checkpoint`` is to find beside the weights: anchors, thresholds, sizes.
            The file has the weights under ``state_dict`` then, as mmdetection's files. ``.safetensors`` has no place.

    Raises:
        CheckpointError: `state` is no mapping of names to tensors, the suffix is another one, the folder is missing,
            the disk is full, the file exists and `overwrite` is False, or safetensors is not installed.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"save_checkpoint: {shown(path)} given; accepted is a file's path.")
    path = Path(path)
    suffix = _checked_suffix(path)
    _check_state(state)
    if os.path.exists(path) and not overwrite:  # unlike Path.exists, False in a folder without search permission
        raise CheckpointError(f"{path}: exists already; give another name, or overwrite it explicitly.")
    safetensors = _safetensors(path) if suffix == SAFETENSORS else None
    if safetensors is not None and detector is not None:
        raise CheckpointError(f"{path}: {SAFETENSORS} files have tensors alone; give .pth, or leave out detector.")
    content = dict(state) if detector is None else {"state_dict": dict(state), DETECTOR_SETTINGS: detector.to_dict()}
    try:
        # torch.save writes the name of a path, here a random one, into the file; that of a handle it does not know.
        with written_whole(path) as unfinished, unfinished.open("wb") as handle:
            if safetensors is not None:
                handle.write(safetensors.save(_without_shared_memory(state)))
            else:
                torch.save(content, handle)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when the disk is full
        raise CheckpointError(f"{path}: cannot be written ({_first_line(error)}).") from error


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
    """Return contiguous CPU tensors of which no two share memory, as safetensors requires."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        out[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return out
