"""Batches: collation with workers, random boxes and crops that repeat, colours."""

from __future__ import annotations

import colorsys
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from made_files import MOUSE, pattern, save_mask, save_picture
from torch.utils.data import DataLoader

import hrnet_fast as hf
from hrnet_fast import datasets
from hrnet_fast.datasets import BoxAugmentation, ColorAugmentation


def faces(folder: Path, skip_broken: bool) -> datasets.KeypointDataset:
    """Six rows, of which the pictures of rows 3 and 5 are missing."""
    for i in (0, 2, 4, 5):
        save_picture(folder / f"{i}.png", 24 + i, 32 - i, i)
    rows = [f"{i}.png,{i},{i + 1},5,6" for i in range(6)]
    table = folder / "points.csv"
    table.write_text("\n".join(["image,a_x,a_y,b_x,b_y", *rows]))
    return datasets.points_csv(table, flip_pairs=(), skip_broken=skip_broken)


@pytest.mark.processes
def test_skipped_samples_come_back_from_workers(tmp_path: Path) -> None:
    dataset = faces(tmp_path, skip_broken=True)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=datasets.collate_keypoints)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [1, 1, 2]
    assert dataset.skipped == ()
    for batch in [*batches, *batches]:
        dataset.add_skipped(batch.skipped)
    assert [s.path for s in dataset.skipped] == [str(tmp_path / "1.png"), str(tmp_path / "3.png")]
    assert [row for batch in batches for row in batch.rows] == ["row 2", "row 4", "row 6", "row 7"]


@pytest.mark.processes
def test_an_error_in_a_worker_keeps_its_type_and_message(tmp_path: Path) -> None:
    loader = DataLoader(faces(tmp_path, False), 2, num_workers=1, collate_fn=datasets.collate_keypoints)
    with pytest.raises(hf.DatasetError, match=r"1\.png: no such picture"):
        list(loader)


def test_packed_pictures() -> None:
    pictures = [torch.from_numpy(pattern(5, 7)), torch.from_numpy(pattern(4, 3, 1))]
    packed = datasets.pack_images(pictures)
    assert packed.sizes.tolist() == [[5, 7], [4, 3]]
    for picture, start, (height, width) in zip(pictures, packed.starts.tolist(), packed.sizes.tolist(), strict=True):
        part = packed.values[start : start + height * width].view(height, width)
        assert torch.equal(torch.stack([part >> k & 255 for k in (0, 8, 16)], 2), picture.int())
    with pytest.raises(hf.InputError, match="accepted are those of one size"):
        packed.stacked()
    with_a_fourth = [torch.full((*picture.shape[:2], 4), 255, dtype=torch.uint8) for picture in pictures]
    for picture, four in zip(pictures, with_a_fourth, strict=True):
        four[..., :3] = picture
    copied = datasets.pack_images([four[..., :3] for four in with_a_fourth])  # as a reader returns them
    assert torch.equal(copied.values[1:] & 0xFFFFFF, packed.values[1:])
    assert copied.values[0] == 0
    whole = datasets.pack_images([with_a_fourth[0][..., :3]]).stacked()
    assert torch.equal(whole[0], pictures[0].permute(2, 0, 1)), "the fourth byte is not looked at"
    assert torch.equal(datasets.pack_images(pictures[:1] * 2).stacked()[1], pictures[0].permute(2, 0, 1))


def test_a_batch_of_skipped_samples_is_empty() -> None:
    gone = datasets.SkippedSample("a", "", "gone")
    batch = datasets.collate_keypoints([gone])
    assert (len(batch), batch.skipped, len(batch.images.stacked())) == (0, (gone,), 0)
    assert len(datasets.CollateSegmentation()([gone])) == 0


def mouse_batch() -> datasets.KeypointBatch:
    dataset = datasets.deeplabcut(MOUSE / "CollectedData.csv", flip_pairs=())
    return datasets.collate_keypoints([dataset[i] for i in range(3)])


def test_crops_of_mouse_frames() -> None:
    """Without chance: heatmaps decode to the points, and those go back to where they are in the picture."""
    batch = mouse_batch()
    crops = datasets.KeypointCrops((128, 128), (32, 32), padding=1.0, augmentation=BoxAugmentation(), flip_pairs=())
    made = crops(batch)
    assert (made.images.dtype, tuple(made.images.shape)) == (torch.float32, (3, 3, 128, 128))
    assert not made.flips.any()
    seen = batch.visible > 0
    decoded, _ = hf.decode_keypoints(made.targets, (128, 128))
    assert (decoded - made.points)[seen].abs().max() <= 3  # a heatmap pixel is 4 wide
    back = hf.keypoints.to_image(made.points, made.boxes, (128, 128))
    torch.testing.assert_close(back[seen], batch.points[seen])
    assert torch.equal(made.weights, batch.visible)
    assert made.targets[~seen].abs().max() == 0
    again = crops.evaluating()(batch, torch.Generator())
    assert torch.equal(again.images, made.images)


def test_pixels_move_with_their_points() -> None:
    """A white pixel of a black picture is found at its point after every crop."""
    image = torch.zeros(60, 80, 3, dtype=torch.uint8)
    image[29:32, 39:42] = 255
    sample = datasets.KeypointSample(
        image, torch.tensor([[40.0, 30.0]]), torch.ones(1), torch.tensor([20.0, 15, 40, 30]), "", ""
    )
    batch = datasets.collate_keypoints([sample] * 40)
    for method in ("msra", "udp", "face"):
        crops = datasets.KeypointCrops(
            (96, 96), (24, 24), method, augmentation=BoxAugmentation(shift=0.1, rotation=30), flip_pairs=(),
            mean=(0, 0, 0), std=(1, 1, 1),
        )  # fmt: skip
        made = crops(batch, torch.Generator().manual_seed(1))
        assert 5 < made.flips.sum() < 35
        light = made.images[:, 0]
        grid = torch.arange(96.0)
        x, y = ((light.sum(axis) * grid).sum(1) / light.sum((1, 2)) for axis in (1, 2))
        off = torch.stack([x, y], 1) - made.points[:, 0]
        # The authors' faces count a mirrored point from the picture's edge, and their pixels from the next.
        assert off.abs().max() <= (2.5 if method == "face" else 0.1), method


def test_draws_follow_their_fields() -> None:
    count = 4000
    boxes = torch.tensor([[10.0, 20, 30, 40]], dtype=torch.float64).repeat(count, 1)
    given = (boxes, torch.zeros(count, 3, 2), torch.ones(count, 3), torch.full((count,), 100), (40, 30))

    def drawn(**fields: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        draw = BoxAugmentation(**fields).draw(*given, torch.Generator().manual_seed(0))
        return draw.boxes[:, 2] / 30, draw.rotations, draw.boxes[:, 0] + draw.boxes[:, 2] / 2

    scale, rotation, centre = drawn()
    turned = rotation != 0
    assert turned.double().mean().item() == pytest.approx(0.6, abs=0.03)
    assert rotation.abs().max() == 90
    assert (rotation.abs() == 90).double().mean().item() == pytest.approx(0.6 * 0.0455, abs=0.01)
    assert scale.min().item() == pytest.approx(0.65)
    assert (scale > 1.3499).double().mean().item() == pytest.approx(0.1587, abs=0.02)
    assert sorted(set(centre.tolist())) == [25, 74], "100 - 1 - 25 where mirrored"
    assert (centre == 74).double().mean().item() == pytest.approx(0.5, abs=0.03)
    scale, rotation, _ = drawn(distribution="uniform", scale=0.25, rotation=30)
    assert scale.std().item() == pytest.approx(0.5 / math.sqrt(12), abs=0.01)
    assert 29 < rotation.abs().max() <= 30
    scale, _, centre = drawn(distribution="truncated_normal", scale=0.5, shift=0.16, flip_probability=0)
    assert scale.std().item() == pytest.approx(0.5 * 0.5396, abs=0.01)  # of a normal number between -1 and 1
    assert 0.5 <= scale.min() < 0.51
    assert (centre != 25).double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert ((centre - 25) / 30).abs().max() <= 0.16


def test_half_bodies_are_drawn_where_enough_is_visible() -> None:
    """Two persons with points in one half each, and one with too few visible points."""
    points = torch.zeros(3, 10, 2)
    points[:, :5] = torch.tensor([[10.0, 10], [20, 10], [10, 30], [20, 30], [15, 20]])
    points[:, 5:] = torch.tensor([[60.0, 70], [70, 70], [60, 90], [70, 90], [65, 80]])
    visible = torch.ones(3, 10)
    visible[2, 3:] = 0
    boxes = torch.tensor([[0.0, 0, 100, 100]], dtype=torch.float64).repeat(3, 1)
    only = BoxAugmentation(scale=0, rotation_probability=0, flip_probability=0, half_body_probability=1)
    for share, centre in ((1.0, [15, 20]), (0.0, [65, 80])):
        augmentation = dataclasses.replace(only, upper_body_probability=share)
        given = (boxes, points, visible, torch.full((3,), 100), (64, 64), torch.Generator())
        draw = augmentation.draw(*given, upper_body=range(5))
        assert (draw.boxes[:2, :2] + draw.boxes[:2, 2:] / 2).tolist() == [centre] * 2
        assert draw.boxes[:2, 2:].tolist() == [[30, 30]] * 2, "20 high, widened to a square, times 1.5"
        assert torch.equal(draw.boxes[2], boxes[2])
        assert torch.equal(augmentation.draw(*given).boxes, boxes), "no keypoint is known to be of the upper body"


def test_keypoint_weights_multiply_the_targets_weights() -> None:
    batch = mouse_batch()
    crops = datasets.KeypointCrops((64, 64), (16, 16), padding=1.0, keypoint_weights=[1.0, 1.5] + [2.0] * 15)
    expected = batch.visible * torch.tensor([1.0, 1.5] + [2.0] * 15)
    assert torch.equal(crops(batch).weights, expected)
    with pytest.raises(hf.InputError, match="2 keypoint_weights for 17 keypoints"):
        dataclasses.replace(crops, keypoint_weights=[1.0, 2.0])(batch)


def test_a_restored_generator_repeats_the_batches() -> None:
    batch = mouse_batch()
    crops = datasets.KeypointCrops(
        (64, 64),
        (16, 16),
        augmentation=BoxAugmentation(),
        flip_pairs=(),
        colors=ColorAugmentation(3, 0.2, 0.2, 0.2, 0.1),
    )
    generator = torch.Generator().manual_seed(5)
    first = crops(batch, generator)
    state = generator.get_state()
    second = crops(batch, generator)
    again = crops(batch, torch.Generator().set_state(state))
    assert not torch.equal(first.images, second.images)
    for field in dataclasses.fields(second):
        assert torch.equal(getattr(second, field.name), getattr(again, field.name)), field.name


def test_mirroring_needs_to_know_the_pairs() -> None:
    with pytest.raises(hf.InputError, match=r"flip_pairs is None; give the pairs .* or flip_probability=0"):
        datasets.KeypointCrops((64, 64), (16, 16), augmentation=BoxAugmentation())
    datasets.KeypointCrops((64, 64), (16, 16), augmentation=BoxAugmentation(flip_probability=0))


def segmentation_batch(folder: Path) -> datasets.SegmentationBatch:
    """Two pictures of other sizes, whose labels are a function of their colours."""
    for i, (height, width) in enumerate(((40, 64), (70, 50))):
        save_mask(folder / "m" / f"{i}.png", range(20), height, width)
        save_mask(folder / "i" / f"{i}.png", range(0, 200, 10), height, width)
    dataset = datasets.mask_folders(folder / "i", folder / "m", 20)
    return datasets.CollateSegmentation()([dataset[0], dataset[1]])


@pytest.mark.traced
@pytest.mark.slow
@pytest.mark.parametrize(("stretch", "pixels"), [(False, 0.5), (True, 1.0)])
def test_labels_move_with_their_pixels(tmp_path: Path, stretch: bool, pixels: float) -> None:
    """Each resize of labels without interpolation is up to half a pixel beside that of the pixels."""
    crops = datasets.SegmentationCrops(
        (48, 48), 64, (2.0, 2.0), 0, stretch=stretch, flip_first=stretch, mean=(0, 0, 0), std=(1 / 255,) * 3
    )
    batch = segmentation_batch(tmp_path)
    flips = []
    for seed in range(4):
        made = crops(batch, torch.Generator().manual_seed(seed))
        assert (made.labels.dtype, tuple(made.labels.shape)) == (torch.int64, (2, 48, 48))
        inside = made.labels != 255
        off = (made.images[:, 0] / 10 - made.labels)[inside].abs()
        # Between two columns the grey is a blend; where 19 meets 0 it is far from both.
        assert off.median() <= pixels
        assert (off > pixels + 1).float().mean() < 0.1
        assert (made.images.amax(1)[~inside] == 0).all(), "padding is 0 and ignored"
        ahead = (made.labels[..., 1:] - made.labels[..., :-1]).sign()
        flips += [bool(ahead[i].sum() < 0) for i in range(2)]
    assert {True, False} == set(flips)


def test_the_shorter_side_is_resized_first(tmp_path: Path) -> None:
    """As ``resize_short_length`` of the authors' branch HRNet-OCR does with each picture, before it is scaled."""
    batch = segmentation_batch(tmp_path)
    resized = []
    for i, (height, width) in enumerate(batch.images.sizes.tolist()):
        size = (30, int(width * 30 / height + 0.5)) if height < width else (int(height * 30 / width + 0.5), 30)
        parts = [datasets.PackedImages(part.values, part.starts[i:][:1], part.sizes[i:][:1]) for part in
                 (batch.images, batch.labels)]  # fmt: skip
        whole, corner = torch.tensor([size]), torch.zeros(1, 2, dtype=torch.int64)
        image = datasets.resized_parts(parts[0], whole, corner, size)[0].permute(1, 2, 0)
        labels = datasets.resized_parts(parts[1], whole, corner, size, nearest=True)[0, 0]
        resized.append(datasets.SegmentationSample(image, labels, "", ""))
    before = datasets.CollateSegmentation()(resized)
    plain, first = (datasets.SegmentationCrops((48, 48), 40, **fields) for fields in ({}, {"resize_shorter": 30}))
    for seed in range(3):
        expected, found = (
            crops(given, torch.Generator().manual_seed(seed)) for crops, given in ((plain, before), (first, batch))
        )
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)


def test_mirroring_swaps_classes(tmp_path: Path) -> None:
    plain, swapping = (
        datasets.SegmentationCrops((40, 40), 40, flip_probability=1, swapped_classes=pairs)
        for pairs in ((), ((14, 15), (3, 9)))
    )
    batch = segmentation_batch(tmp_path)
    before = plain(batch, torch.Generator().manual_seed(0)).labels
    after = swapping(batch, torch.Generator().manual_seed(0)).labels
    swapped = {14: 15, 15: 14, 3: 9, 9: 3}
    assert torch.equal(after, before.clone().apply_(lambda label: swapped.get(label, label)))
    assert not torch.equal(after, before)


def test_the_base_size_is_of_the_longer_or_the_shorter_side(tmp_path: Path) -> None:
    batch = segmentation_batch(tmp_path)
    for side, choose in (("longer", max), ("shorter", min)):
        crops = datasets.SegmentationCrops((160, 160), 60, (1.0, 1.0), 0, base_side=side, flip_probability=0)
        labels = crops(batch, torch.Generator().manual_seed(0)).labels
        for i, size in enumerate(batch.images.sizes.tolist()):
            expected = [round(n * 60 / choose(size) + 1e-9) for n in size]
            inside = labels[i] != 255
            assert [int(inside.any(1).sum()), int(inside.any(0).sum())] == expected
    with pytest.raises(hf.InputError, match="base_side='both'; accepted are 'longer' and 'shorter'"):
        datasets.SegmentationCrops(base_side="both")


def test_crops_of_pictures_without_masks_are_refused(tmp_path: Path) -> None:
    batch = dataclasses.replace(segmentation_batch(tmp_path), labels=None)
    with pytest.raises(hf.InputError, match="training needs masks"):
        datasets.SegmentationCrops()(batch, torch.Generator())


def test_normalization_is_in_the_upstreams_order() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    made = datasets.normalize(images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (datasets.MEAN, datasets.STD))
    assert torch.equal(made[0], (images[0].float() / 255 - mean) / std)
    with pytest.raises(hf.InputError, match="C numbers each"):
        datasets.normalize(images, (0.5,))


def one_field(value: float, **fields: float) -> torch.Tensor:
    """Colours of two pixels where every random number is `value`."""
    pixels = torch.tensor([[[10, 200], [80, 60], [240, 30]]], dtype=torch.uint8)[..., None]

    class Same(ColorAugmentation):
        pass

    made = torch.full((1, 7), value, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.colors, "random_numbers", lambda *_: made)
        return Same(**fields)(pixels, torch.Generator())[0, :, :, 0] * 255  # type: ignore[arg-type]


def test_colours() -> None:
    """Every number is 0.75, which is half way to the upper end."""
    pixels = torch.tensor([[10.0, 200], [80, 60], [240, 30]])
    grey = (pixels * torch.tensor([[0.299], [0.587], [0.114]])).sum(0)
    assert torch.allclose(one_field(0.75, brightness_shift=10), pixels + 5)
    assert torch.allclose(one_field(0.25, brightness_shift=10), pixels), "half of the pictures are left"
    assert torch.allclose(one_field(0.75, brightness=0.4), (pixels * 1.2).clamp(0, 255))
    assert torch.allclose(one_field(0.75, contrast=0.4), (grey.mean() + (pixels - grey.mean()) * 1.2).clamp(0, 255))
    assert torch.allclose(one_field(0.75, saturation=0.4), (grey + (pixels - grey) * 1.2).clamp(0, 255), atol=1e-4)
    turned = one_field(0.75, hue=0.2)
    for i in range(2):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[:, i] / 255).tolist())
        expected = torch.tensor(colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation, value)) * 255
        assert torch.allclose(turned[:, i], expected, atol=1e-2)
    left = one_field(0.75, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, probability=0.5)
    assert torch.allclose(left, pixels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BoxAugmentation(scale=1.0),
        lambda: BoxAugmentation(distribution="normal"),
        lambda: BoxAugmentation(flip_probability=1.5),
        lambda: BoxAugmentation(rotation=None),  # type: ignore[arg-type]
        lambda: ColorAugmentation(hue=0.6),
        lambda: ColorAugmentation(brightness_shift=0.5),  # type: ignore[arg-type]
        lambda: datasets.KeypointCrops((64, 64), (16, 16), "mrsa"),
        lambda: datasets.KeypointCrops((64, 64), (16, 16), colors=0.5),  # type: ignore[arg-type]
        lambda: datasets.SegmentationCrops(scales=(2.0, 1.0)),
        lambda: datasets.SegmentationCrops(stretch="yes"),  # type: ignore[arg-type]
        lambda: datasets.SegmentationCrops(resize_shorter=0),
        lambda: datasets.SegmentationCrops(resize_shorter=520, stretch=True),
        lambda: datasets.SegmentationCrops(swapped_classes=((1, 1),)),
    ],
)
def test_unusable_settings(make: Any) -> None:
    with pytest.raises(hf.InputError):
        make()
