"""Values of MATLAB files of version 7.3, which are HDF5 files with the axes in reverse order."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrnet_fast.errors import MissingPackageError

IN_FILE = ".mat#"  # what the path of a picture in a cell array has: FILE.mat#NAME[NUMBER]


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
        path: ``FILE.mat#NAME[NUMBER]``, counted from 0.

    Raises:
        MissingPackageError, OSError: as :func:`matlab_file`.
        ValueError: the file has no such picture.
    """
    source, _, place = path.rpartition("#")
    name, _, number = place.rstrip("]").partition("[")
    with matlab_file(source) as file:
        try:
            values = file[matlab_cells(file, name)[int(number)]][()]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"it has no {place}") from error
    if not isinstance(values, np.ndarray) or values.dtype != np.uint8 or values.ndim not in (2, 3):
        raise ValueError(f"{place} is no picture of bytes")
    pixels = values.T if values.ndim == 3 else np.repeat(values.T[..., None], 3, axis=2)
    if pixels.shape[2] != 3:
        raise ValueError(f"{place} has {pixels.shape[2]} channels")
    return np.ascontiguousarray(pixels)
