"""The paper's segmentation data sets as their authors distribute them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hrnet_fast.checks import check_text
from hrnet_fast.datasets.reading import check_folder
from hrnet_fast.datasets.segmentation import SegmentationDataset, mask_folders, split_files
from hrnet_fast.errors import InputError, shown

CITYSCAPES_NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_CITYSCAPES_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CAMVID_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
LIP_NAMES = (
    "background", "hat", "hair", "glove", "sunglasses", "upper clothes", "dress", "coat", "socks", "pants", "jumpsuits",
    "scarf", "skirt", "face", "left arm", "right arm", "left leg", "right leg", "left shoe", "right shoe",
)  # fmt: skip
LIP_SWAPPED = ((14, 15), (16, 17), (18, 19))


def cityscapes_label_map(ignore_label: int = 255) -> Mapping[int, int]:
    """Return the training class of each Cityscapes ``labelId``, as in the authors' ``cityscapes.py``."""
    trained = {value: label for label, value in enumerate(_CITYSCAPES_TRAINED)}
    return {value: trained.get(value, ignore_label) for value in range(-1, 34)}


def cityscapes(
    root: str | os.PathLike[str], split: str = "train", *, ignore_label: int = 255, skip_broken: bool = False
) -> SegmentationDataset:
    """Read ``leftImg8bit/{split}/*/*_leftImg8bit.png`` and ``gtFine/{split}/*/*_gtFine_labelIds.png``: 19 classes.

    Raises:
        DatasetError: a folder is missing or has no picture.
    """
    check_text("cityscapes", split=split)
    folder = check_folder("cityscapes", root)
    return mask_folders(
        folder / "leftImg8bit" / split,
        folder / "gtFine" / split,
        19,
        image_ending="_leftImg8bit.png",
        mask_ending="_gtFine_labelIds.png",
        label_map=cityscapes_label_map(ignore_label),
        ignore_label=ignore_label,
        names=CITYSCAPES_NAMES,
        skip_broken=skip_broken,
    )


def pascal_context_label_map(num_classes: int, ignore_label: int = 255) -> Mapping[int, int]:
    """Return the class of each value 0 (background) to 59: itself for 60 classes; for 59, one less and 0 ignored.

    Raises:
        InputError: `num_classes` is another number.
    """
    if num_classes not in (59, 60):
        raise InputError(f"pascal_context: num_classes={shown(num_classes)}; accepted are 59 and 60.")
    if num_classes == 60:
        return {value: value for value in range(60)}
    return {0: ignore_label} | {value: value - 1 for value in range(1, 60)}


def pascal_context(
    root: str | os.PathLike[str],
    split: str = "train",
    num_classes: int = 59,
    *,
    ignore_label: int = 255,
    skip_broken: bool = False,
) -> SegmentationDataset:
    """Read PASCAL-Context in VOC's layout, as mmsegmentation has it.

    The names are in ``ImageSets/SegmentationContext/{split}.txt``, pictures in ``JPEGImages`` and masks (0 for
    background, 1 to 59) in ``SegmentationClassContext``. The authors' lists are read by
    :func:`~hrnet_fast.datasets.segmentation_list` with :func:`pascal_context_label_map`. Their branch ``pytorch-v1.1``
    reads ``trainval_merged.json`` with the Detail API, which is not read here.

    Raises:
        DatasetError: a folder or the split is missing or empty.
        InputError: `num_classes` is neither 59 nor 60.
    """
    check_text("pascal_context", split=split)
    folder = check_folder("pascal_context", root)
    files = split_files(
        folder / "ImageSets" / "SegmentationContext" / f"{split}.txt",
        check_folder("pascal_context", folder / "JPEGImages"),
        check_folder("pascal_context", folder / "SegmentationClassContext"),
    )
    return SegmentationDataset(
        files,
        num_classes,
        label_map=pascal_context_label_map(num_classes, ignore_label),
        ignore_label=ignore_label,
        skip_broken=skip_broken,
    )


def lip(
    root: str | os.PathLike[str], split: str = "train", *, ignore_label: int = 255, skip_broken: bool = False
) -> SegmentationDataset:
    """Read LIP: ``TrainVal_images/{split}_images`` and ``TrainVal_parsing_annotations/{split}_segmentations``.

    20 classes. Mirroring swaps left and right arm, leg and shoe (the authors' ``lip.py``).

    Raises:
        DatasetError: a folder is missing or has no picture.
    """
    check_text("lip", split=split)
    folder = check_folder("lip", root)
    return mask_folders(
        folder / "TrainVal_images" / f"{split}_images",
        folder / "TrainVal_parsing_annotations" / f"{split}_segmentations",
        20,
        ignore_label=ignore_label,
        swapped_classes=LIP_SWAPPED,
        names=LIP_NAMES,
        skip_broken=skip_broken,
    )


def camvid(
    root: str | os.PathLike[str], split: str = "train", *, ignore_label: int = 255, skip_broken: bool = False
) -> SegmentationDataset:
    """Read CamVid as SegNet distributes it: ``{split}`` and ``{split}annot``, 11 classes, 11 for what is ignored.

    Raises:
        DatasetError: a folder is missing or has no picture.
    """
    check_text("camvid", split=split)
    folder = check_folder("camvid", root)
    return mask_folders(
        folder / split,
        folder / f"{split}annot",
        11,
        label_map={**{value: value for value in range(11)}, 11: ignore_label},
        ignore_label=ignore_label,
        names=CAMVID_NAMES,
        skip_broken=skip_broken,
    )
