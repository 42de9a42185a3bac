"""Pictures with a class per pixel: folders, lists, and the layouts of the paper's data sets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrnet_fast.checks import check_integer, check_path
from hrnet_fast.datasets.reading import check_folder, fail, image_files, read_classes, read_text
from hrnet_fast.datasets.samples import SegmentationSample
from hrnet_fast.datasets.skipping import AnnotatedImages
from hrnet_fast.errors import DatasetError, InputError, shown


class SegmentationDataset(AnnotatedImages[SegmentationSample]):
    """Samples of one picture and its mask, decoded when they are asked for.

    Args:
        files: (picture, mask or None, row) of each sample.
        num_classes: training classes 0 to num_classes - 1; at most 255.
        label_map: training class of each value of a mask; values without an entry raise. None means that values are
            training classes.
        ignore_label: from 0 to 255. A value of a mask that equals it and has no entry in `label_map` is ignored too.
        swapped_classes: pairs of classes that mirroring swaps, such as LIP's left and right arm.
        names: names of the classes.
        skip_broken: see :class:`~hrnet_fast.datasets.AnnotatedImages`.

    Attributes:
        num_classes, ignore_label, swapped_classes, names, skipped: as above.
    """

    def __init__(
        self,
        files: Sequence[tuple[str, str | None, str]],
        num_classes: int,
        *,
        label_map: Mapping[int, int] | None = None,
        ignore_label: int = 255,
        swapped_classes: Sequence[tuple[int, int]] = (),
        names: Sequence[str] = (),
        skip_broken: bool = False,
    ) -> None:
        super().__init__(skip_broken)
        what = "SegmentationDataset"
        check_integer(what, "num_classes", num_classes)
        check_integer(what, "ignore_label", ignore_label, least=0)
        if num_classes > 255 or ignore_label > 255 or ignore_label < num_classes:
            raise InputError(
                f"{what}: num_classes={num_classes} and ignore_label={ignore_label}; accepted are up to 255 classes "
                "and an ignored label after them, up to 255."
            )
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.swapped_classes, self.names = tuple(swapped_classes), tuple(names)
        self._files = list(files)
        self._table = _label_table(what, num_classes, ignore_label, label_map)
        self._kind = f"labels {hashlib.sha256(self._table.tobytes()).hexdigest()}"  # what a cache holds

    def __len__(self) -> int:
        return len(self._files)

    def picture(self, index: int) -> str:
        """Return the path of a sample's picture."""
        return self._files[index][0]

    def subset(self, indices: Sequence[int]) -> SegmentationDataset:
        """Return the samples of these indices."""
        part = self._copied()
        part._files = [self._files[i] for i in indices]
        return part

    def read(self, index: int) -> SegmentationSample:
        """Return a decoded sample.

        Raises:
            DatasetError: a file cannot be decoded, the mask has another size, or a class is out of range.
        """
        path, mask, row = self._files[index]
        image = self._pixels(path)
        return SegmentationSample(image, None if mask is None else self._labels(mask, row, image), path, row)

    def _labels(self, mask: str, row: str, image: Tensor) -> Tensor:
        height, width = image.shape[:2]
        if self.cache is None:
            labels = self._read_labels(mask, row, (height, width))
        else:
            labels = self.cache.array(mask, self._kind, lambda: self._read_labels(mask, row, (height, width)))
            self._check_size(mask, row, labels.shape, (height, width))
        return torch.from_numpy(labels)

    def _read_labels(self, mask: str, row: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return training classes and the ignored label, uint8 [H, W]."""
        values = read_classes(mask)
        self._check_size(mask, row, values.shape, size)
        if values.max() >= len(self._table) or values.min() < 0:
            raise self._out_of_range(mask, row, values)
        labels = np.take(self._table, values)
        if labels.min() < 0:
            raise self._out_of_range(mask, row, values)
        return labels.astype(np.uint8)

    def _check_size(self, mask: str, row: str, found: tuple[int, ...], size: tuple[int, int]) -> None:
        if found != size:
            given = f"a mask of {found[1]} x {found[0]} for a picture of {size[1]} x {size[0]}"
            raise fail(mask, row, given, "a mask of the picture's size")

    def _out_of_range(self, mask: str, row: str, values: NDArray[np.int64]) -> DatasetError:
        known = [int(v) for v in np.flatnonzero(self._table >= 0)]
        wrong = [int(v) for v in np.setdiff1d(values, known)]
        accepted = ", ".join(map(str, known)) if len(known) <= 6 else f"{known[0]} to {known[-2]}, and {known[-1]}"
        return fail(mask, row, f"classes {wrong[:6]}, out of range", f"{accepted} ({self.num_classes} classes)")


def _label_table(what: str, classes: int, ignored: int, label_map: Mapping[int, int] | None) -> NDArray[np.int16]:
    """Return the training class of each value of a mask, -1 where the value is not accepted."""
    if not isinstance(label_map, (Mapping, type(None))):
        raise InputError(f"{what}: label_map={shown(label_map)}; accepted is a mapping of values to classes, or None.")
    given = {value: value for value in range(classes)} if label_map is None else dict(label_map)
    for value, label in given.items():
        in_range = isinstance(label, int) and (0 <= label < classes or label == ignored)
        if not isinstance(value, int) or not in_range or not -1 <= value < 1 << 16:
            raise InputError(
                f"{what}: label_map has {shown(value)}: {shown(label)}; accepted are values up to 65535 with a class "
                f"from 0 to {classes - 1} or the ignored label {ignored}."
            )
    given.setdefault(ignored, ignored)
    table = np.full(max(given) + 1, -1, dtype=np.int16)
    for value, label in given.items():
        if value >= 0:  # a PNG has no -1
            table[value] = label
    return table


def mask_folders(
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    num_classes: int,
    *,
    image_ending: str = "",
    mask_ending: str = ".png",
    label_map: Mapping[int, int] | None = None,
    ignore_label: int = 255,
    swapped_classes: Sequence[tuple[int, int]] = (),
    names: Sequence[str] = (),
    skip_broken: bool = False,
) -> SegmentationDataset:
    """Read the pictures of one folder, at any depth, and the masks of the same paths in another.

    Args:
        images: folder of pictures.
        masks: folder of masks of one channel.
        num_classes: see :class:`SegmentationDataset`, as the arguments not named here.
        image_ending: what a picture's name ends with, such as ``"_leftImg8bit.png"``; "" means any suffix.
        mask_ending: what stands in its place in the mask's name.

    Raises:
        DatasetError: a folder has no picture. Files are read when a sample is asked for.
    """
    first, second = check_folder("mask_folders", images), check_folder("mask_folders", masks)
    files = []
    for path in image_files(first):
        ending = image_ending or path.suffix
        if path.name.endswith(ending):
            relative = path.relative_to(first)
            mask = second / relative.with_name(path.name[: -len(ending)] + mask_ending)
            files.append((str(path), str(mask), ""))
    if not files:
        raise fail(first, "", "no picture with that ending", f"names that end with {image_ending}")
    return SegmentationDataset(
        files,
        num_classes,
        label_map=label_map,
        ignore_label=ignore_label,
        swapped_classes=swapped_classes,
        names=names,
        skip_broken=skip_broken,
    )


def segmentation_list(
    list_file: str | os.PathLike[str],
    images: str | os.PathLike[str],
    num_classes: int,
    *,
    masks: str | os.PathLike[str] | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_label: int = 255,
    swapped_classes: Sequence[tuple[int, int]] = (),
    names: Sequence[str] = (),
    skip_broken: bool = False,
) -> SegmentationDataset:
    """Read a list of the authors' segmentation repository (``data/list/*/*.lst``).

    A row has a picture and its mask, separated by blanks. A picture alone has no mask; a third column (LIP's reversed
    masks) is not used.

    Args:
        list_file: such as ``data/list/cityscapes/train.lst``.
        images: folder at which the pictures' paths begin.
        masks: folder at which the masks' paths begin; None means that of the pictures.
        num_classes: see :class:`SegmentationDataset`, as the other arguments.

    Raises:
        DatasetError: the list or a row is malformed. Other files are read when a sample is asked for.
    """
    source = check_path("segmentation_list", list_file)
    first = check_folder("segmentation_list", images)
    second = first if masks is None else check_folder("segmentation_list", masks)
    files: list[tuple[str, str | None, str]] = []
    errors: list[DatasetError] = []
    for number, line in enumerate(read_text(source).splitlines(), 1):
        cells = line.split()
        if len(cells) > 3:
            given = f"{len(cells)} columns in row {number}"
            errors.append(fail(source, f"row {number}", given, "a picture, or a picture and its mask"))
        elif cells:
            mask = str(second / cells[1]) if len(cells) > 1 else None
            files.append((str(first / cells[0]), mask, f"row {number}"))
    dataset = SegmentationDataset(
        files,
        num_classes,
        label_map=label_map,
        ignore_label=ignore_label,
        swapped_classes=swapped_classes,
        names=names,
        skip_broken=skip_broken,
    )
    for error in errors:
        dataset.raise_or_skip(error)
    if not files:
        raise fail(source, "", "no row", "a list with a picture or more")
    return dataset


def split_files(split_file: Path, images: Path, masks: Path) -> list[tuple[str, str | None, str]]:
    """Return the files of PASCAL VOC's split: one name without suffix in each row."""
    names = read_text(split_file).split()
    if not names:
        raise fail(split_file, "", "no name", "a list with a name or more")
    return [(str(images / f"{n}.jpg"), str(masks / f"{n}.png"), f"row {i}") for i, n in enumerate(names, 1)]
