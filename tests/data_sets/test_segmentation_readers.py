"""Readers of masks: every layout gives training classes, and a broken mask says what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_files import pattern, save_mask, save_picture
from PIL import Image

import hrnet_fast as hf
from hrnet_fast import datasets


def columns(dataset: datasets.SegmentationDataset, count: int) -> list[int]:
    """The first columns of the first sample's labels; all of its rows are equal."""
    sample = dataset[0]
    assert torch.equal(sample.image, torch.from_numpy(pattern(24, 32)))
    assert (sample.labels.dtype, tuple(sample.labels.shape)) == (torch.uint8, (24, 32))
    assert (sample.labels == sample.labels[:1]).all()
    return sample.labels[0, :count].tolist()


def test_cityscapes(tmp_path: Path) -> None:
    save_picture(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_0_leftImg8bit.png")
    save_picture(tmp_path / "leftImg8bit" / "train" / "ulm" / "other.png")
    save_mask(tmp_path / "gtFine" / "train" / "ulm" / "ulm_0_gtFine_labelIds.png", [7, 0, 33, 29, 26, 14])
    dataset = datasets.cityscapes(tmp_path)
    assert len(dataset) == 1
    assert columns(dataset, 6) == [0, 255, 18, 255, 13, 255]
    assert columns(datasets.cityscapes(tmp_path, ignore_label=19), 3) == [0, 19, 18]
    trained = {v: k for k, v in datasets.cityscapes_label_map().items() if v != 255}
    assert [trained[i] for i in range(19)] == [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    save_mask(tmp_path / "gtFine" / "train" / "ulm" / "ulm_0_gtFine_labelIds.png", [7, 34])
    with pytest.raises(
        hf.DatasetError, match=r"labelIds.png: classes \[34\], out of range; accepted is 0 to 33, and 255"
    ):
        dataset[0]


@pytest.mark.parametrize(("classes", "expected"), [(59, [255, 0, 58]), (60, [0, 1, 59])])
def test_pascal_context(tmp_path: Path, classes: int, expected: list[int]) -> None:
    save_picture(tmp_path / "JPEGImages" / "a.jpg")
    Image.fromarray(pattern(24, 32)).save(tmp_path / "JPEGImages" / "a.jpg", format="PNG")  # without loss
    save_mask(tmp_path / "SegmentationClassContext" / "a.png", [0, 1, 59])
    names = tmp_path / "ImageSets" / "SegmentationContext" / "train.txt"
    names.parent.mkdir(parents=True)
    names.write_text("a\n")
    assert columns(datasets.pascal_context(tmp_path, "train", classes), 3) == expected
    with pytest.raises(hf.InputError, match="num_classes=20; accepted are 59 and 60"):
        datasets.pascal_context(tmp_path, "train", 20)


def test_lip(tmp_path: Path) -> None:
    save_picture(tmp_path / "TrainVal_images" / "val_images" / "a.png")
    save_mask(tmp_path / "TrainVal_parsing_annotations" / "val_segmentations" / "a.png", [0, 14, 19])
    dataset = datasets.lip(tmp_path, "val")
    assert columns(dataset, 3) == [0, 14, 19]
    assert [dataset.names[i] for pair in dataset.swapped_classes for i in pair] == [
        "left arm", "right arm", "left leg", "right leg", "left shoe", "right shoe",
    ]  # fmt: skip


def test_camvid(tmp_path: Path) -> None:
    save_picture(tmp_path / "train" / "a.png")
    save_mask(tmp_path / "trainannot" / "a.png", [0, 10, 11])
    assert columns(datasets.camvid(tmp_path), 3) == [0, 10, 255]


def test_authors_lists(tmp_path: Path) -> None:
    save_picture(tmp_path / "i" / "a.png")
    save_mask(tmp_path / "m" / "a.png", [0, 1, 255])
    rows = tmp_path / "train.lst"
    rows.write_text("i/a.png\tm/a.png\n\ni/a.png m/a.png m/reversed.png\ni/a.png\n")
    dataset = datasets.segmentation_list(rows, tmp_path, 2)
    assert len(dataset) == 3
    assert columns(dataset, 3) == [0, 1, 255]
    assert (dataset[2].labels, dataset[2].row) == (None, "row 4")
    rows.write_text("a b c d\ni/a.png\n")
    with pytest.raises(hf.DatasetError, match=r"train.lst \(row 1\): 4 columns"):
        datasets.segmentation_list(rows, tmp_path, 2)
    skipping = datasets.segmentation_list(rows, tmp_path, 2, skip_broken=True)
    assert (len(skipping), skipping.skipped[0].row) == (1, "row 1")


def save_rgb(path: Path) -> None:
    save_picture(path)


def save_palette(path: Path) -> None:
    image = Image.fromarray(np.full((24, 32), 1, np.uint8)).convert("P")
    image.putpalette([9, 9, 9] * 4)
    image.save(path)


def save_16_bits(path: Path) -> None:
    Image.fromarray(np.full((24, 32), 300, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (
            lambda path: save_mask(path, [0, 2, 7]),
            r"classes \[2, 7\], out of range; accepted is 0, 1, 255 \(2 classes\)",
        ),
        (lambda path: save_mask(path, [0], height=20), "a mask of 32 x 20 for a picture of 32 x 24"),
        (save_rgb, "a mask of mode RGB; accepted is a mask of one channel"),
        (lambda path: path.write_bytes(b"no picture"), "cannot be decoded"),
        (lambda path: None, "no such mask"),
        (save_16_bits, r"classes \[300\], out of range"),
    ],
)
def test_broken_masks(tmp_path: Path, save: Callable[[Path], object], told: str) -> None:
    save_picture(tmp_path / "i" / "a.jpg")
    (tmp_path / "m").mkdir()
    save(tmp_path / "m" / "a.png")
    with pytest.raises(hf.DatasetError, match=told) as caught:
        datasets.mask_folders(tmp_path / "i", tmp_path / "m", 2)[0]
    assert caught.value.path == str(tmp_path / "m" / "a.png")
    skipping = datasets.mask_folders(tmp_path / "i", tmp_path / "m", 2, skip_broken=True)
    assert skipping[0] == skipping.skipped[0]


def test_masks_of_other_kinds(tmp_path: Path) -> None:
    save_picture(tmp_path / "i" / "a.png")
    (tmp_path / "m").mkdir()
    for save, label_map, expected in ((save_palette, None, 1), (save_16_bits, {300: 4}, 4)):
        save(tmp_path / "m" / "a.png")
        dataset = datasets.mask_folders(tmp_path / "i", tmp_path / "m", 5, label_map=label_map)
        assert (dataset[0].labels == expected).all()


@pytest.mark.parametrize(
    "changes",
    [{"num_classes": 256}, {"ignore_label": 1}, {"ignore_label": 256}, {"label_map": {0: 2}}, {"label_map": {"a": 1}}],
)
def test_unusable_classes(changes: dict[str, object]) -> None:
    with pytest.raises(hf.InputError, match="accepted are"):
        datasets.SegmentationDataset([], **({"num_classes": 2} | changes))  # type: ignore[arg-type]


def test_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(hf.DatasetError, match="no such folder"):
        datasets.cityscapes(tmp_path / "none")
    with pytest.raises(hf.DatasetError, match="no picture in this folder"):
        datasets.mask_folders(tmp_path, tmp_path, 2)
