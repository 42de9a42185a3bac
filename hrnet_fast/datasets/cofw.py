"""COFW: faces and their landmarks in MATLAB files, as their authors distribute them."""

from __future__ import annotations

import os

import numpy as np

from hrnet_fast.checks import check_path
from hrnet_fast.datasets.keypoint_dataset import KeypointDataset, KeypointRow, points_box
from hrnet_fast.datasets.matlab_files import matlab_cells, matlab_file
from hrnet_fast.datasets.reading import fail
from hrnet_fast.errors import DatasetError
from hrnet_fast.keypoints.keypoint_sets import COFW

_ARRAYS = (("IsTr", "phisTr"), ("IsT", "phisT"))  # pictures and landmarks of the training and of the test part


def cofw(file: str | os.PathLike[str], *, skip_broken: bool = False) -> KeypointDataset:
    """Read ``COFW_train_color.mat`` or ``COFW_test_color.mat``, as the authors' ``lib/datasets/cofw.py`` does.

    A box is the square around the whole pixels that hold all 29 landmarks. Landmarks with y of 0 or less are
    invisible; the file's marks of occluded ones are not used. Pictures are read from the file when a sample is asked
    for, and have the paths ``FILE#IsTr[NUMBER]``, counted from 0.

    Args:
        file: of MATLAB's version 7.3, with ``IsTr`` and ``phisTr``, or ``IsT`` and ``phisT``.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Raises:
        DatasetError: the file or a landmark is malformed.
        MissingPackageError: h5py is not installed.
    """
    source = str(check_path("cofw", file))
    accepted = "COFW's file of MATLAB 7.3: pictures IsTr [N] with phisTr [N, 87], or IsT with phisT"
    try:
        with matlab_file(source) as there:
            images, phis = next((pair for pair in _ARRAYS if set(pair) <= set(there)), (None, None))
            if images is None:
                raise fail(source, "", f"the arrays {', '.join(sorted(there)) or 'none'}", accepted)
            count, values = len(matlab_cells(there, images)), np.array(there[phis], dtype=np.float64).T
    except DatasetError:
        raise
    except FileNotFoundError:
        raise fail(source, "", "no such file", accepted) from None
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise fail(source, "", f"cannot be read ({str(error)[:120]})", accepted) from error
    if values.ndim != 2 or values.shape[0] != count or values.shape[1] < 2 * COFW.channels:
        raise fail(source, "", f"{count} pictures and {phis} {list(values.shape)}", accepted)
    rows: list[KeypointRow | DatasetError] = []
    for i, numbers in enumerate(values):
        points = numbers[: 2 * COFW.channels].reshape(2, -1).T.copy()
        path, row = f"{source}#{images}[{i}]", f"row {i + 1}"
        if not np.isfinite(points).all():
            rows.append(fail(source, row, f"{phis} with values that are not finite", accepted))
            continue
        box = points_box(points, np.ones(len(points)))
        rows.append(KeypointRow(path, row, points, (points[:, 1] > 0).astype(np.float64), box))
    return KeypointDataset(COFW.names, flip_pairs=COFW.pairs, skip_broken=skip_broken).fill(rows, source)
