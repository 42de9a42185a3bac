"""Values of MATLAB files of version 7.3, which are HDF5 files with the axes in reverse order."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrnet_fast.errors import MissingPackageError

_PLACE = re.compile(r"(.+)#([A-Za-z]\w*)\[(\d+)\]", re.DOTALL)


def matlab_place(path: str) -> tuple[str, str, int] | None:
    """Return file, cell array and number of a picture's path ``FILE#NAME[NUMBER]``, or None for another path."""
    found = _PLACE.fullmatch(path)
    return None if found is None else (found[1], found[2], int(found[3]))


def matlab_file(path: str) -> Any:
    """Return an open file of h5py, for ``with``.

    Raises:
        MissingPackageError: h5py is not installed.
        OSError: there is no such file, or it is damaged or of an older version.
    """
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: MATLAB files are read with h5py, which is not installed: pip install 'hrnet-fast[cofw]'."
        ) from error
    return h5py.File(path, "r")


def matlab_cells(file: Any, name: str) -> NDArray[Any]:
    """Return the references to the cells of a cell array of one column, [N]."""
    cells: NDArray[Any] = file[name][()].reshape(-1)
    return cells


def matlab_picture(path: str) -> NDArray[np.uint8]:
    """Return a picture of a cell array, uint8 RGB [H, W, 3]; grey ones get three equal channels.

    Args:
        path: ``FILE#NAME[NUMBER]``, counted from 0.

    Raises:
        MissingPackageError, OSError: as :func:`matlab_file`.
        ValueError: the file has no such picture.
    """
    found = matlab_place(path)
    if found is None:
        raise ValueError("it names no picture of a MATLAB file")
    source, name, number = found
    place = f"{name}[{number}]"
    with matlab_file(source) as file:
        try:
            values = file[matlab_cells(file, name)[number]][()]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"it has no {place}") from error
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8 or values.ndim not in (2, 3):
        raise ValueError(f"{place} is no picture of bytes")
    pixels = values.T if values.ndim == 3 else np.repeat(values.T[..., None], 3, axis=2)
    if pixels.shape[2] != 3:
        raise ValueError(f"{place} has {pixels.shape[2]} channels")
    return np.ascontiguousarray(pixels)
